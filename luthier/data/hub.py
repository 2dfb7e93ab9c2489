"""Data sets of the Hugging Face hub: `hub:org/name@revision/pattern`, fetched only when asked for.

What: the data files of one repository (all, or those that fit the pattern) in the hub's own cache, then read like any
other file; no loading script is ever run. Why asked: a run must not reach for the network unasked, and what is fetched
should have a revision, or the same project trains on other rows tomorrow.
"""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from luthier.errors import DataError

PREFIX = "hub:"
EVERY_FILE = "**/*"
_ADDRESS = re.compile(
    r"hub:(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[^/@]+))?(?:/(?P<files>.+))?"
)


def fetch(address: str, endings: tuple[str, ...], *, allow_hub: bool) -> tuple[Path, str]:
    """(folder, pattern) of the files of `address` on this disk. endings: of data files, sought when it has no pattern.

    Raises DataError when it is no address, was not asked for, or cannot be fetched.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise DataError(f"{address}: not an address of hub data", hint="write hub:org/name@revision/path/*.parquet")
    if not allow_hub:
        raise DataError(
            f"{address}: fetching from the Hugging Face hub was not asked for",
            hint="set data.allow_hub: true (needs a connection), or download the files and name them",
        )
    pattern = match["files"] or EVERY_FILE
    wanted = (
        [pattern] if match["files"] else [f"*{ending}{packed}" for ending in endings for packed in ("", ".gz", ".zst")]
    )
    try:
        folder = snapshot_download(
            match["repo"], repo_type="dataset", revision=match["revision"], allow_patterns=wanted
        )  # fmt: skip
    except (LocalEntryNotFoundError, HFValidationError, HfHubHTTPError, OSError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{address}: could not be fetched from the Hugging Face hub: {first_line}",
            hint="go online (or log in, for a gated data set), or download the files and name them",
        ) from None
    return Path(folder), pattern
