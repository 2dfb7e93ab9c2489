"""luthier: from raw examples and a foundation model to a tune you can defend shipping, or the measured reason not
to."""

__version__ = "0.1.0"
