"""The demo's own check: what it calls a near-duplicate (its whole run is `make demo-check`)."""

import runpy
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "support"


def test_a_near_duplicate_is_one_with_names_numbers_and_products_changed():
    share = runpy.run_path(str(FOLDER / "check.py"))["near_duplicate_share"]
    told = "The kettle of order 12 that I bought from Anna leaks at the base, please help"
    again = "The blender of order 99 that I bought from Bert leaks at the base, please help"
    other = "Where is my parcel? It was promised for Monday and nobody answers the telephone"
    for size in (1, 2, 3):
        assert share([told, again, other], size) == 2 / 3
