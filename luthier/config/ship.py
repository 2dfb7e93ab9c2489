"""Section `ship`: which artefacts are built and how equal they must be to what was trained."""

from typing import Annotated, Literal

from pydantic import Field

from luthier.config.base import Spec

Format = Literal["gguf-f16", "gguf-q8_0", "gguf-q4_0", "gguf-q4_1"]


class ParityLimit(Spec):
    """An artefact passes when its mean KL is at most `kl` and its same-top-1 share at least `top1`."""

    kl: Annotated[float, Field(gt=0)]
    top1: Annotated[float, Field(gt=0, le=1)]


class ThresholdsSpec(Spec):
    """Limits per kind of artefact (llama.cpp's published table and research on quantised serving)."""

    merged: ParityLimit = ParityLimit(kl=1e-3, top1=0.99)
    f16: ParityLimit = ParityLimit(kl=2e-3, top1=0.99)
    int8: ParityLimit = ParityLimit(kl=0.01, top1=0.97)
    int4: ParityLimit = ParityLimit(kl=0.10, top1=0.90)


class ShipSpec(Spec):
    """Merged safetensors are always built; `formats` adds files for llama.cpp and Ollama."""

    formats: tuple[Format, ...] = ("gguf-f16", "gguf-q8_0", "gguf-q4_1")
    parity_rows: Annotated[int, Field(ge=1)] = 32
    """Dev rows on which every artefact is held against the adapter."""
    thresholds: ThresholdsSpec = ThresholdsSpec()
