"""The test-set ledger: every look at sealed rows is written down before it is taken, and makes the next one dearer.

`ledger.jsonl` lies beside the run folders. A test set is known by the hash of its sorted case ids; a look is the first
evaluation of one tuned artefact on it. The m-th look is judged at alpha / m; evaluating the same artefact again is
not a new look and keeps its m. Why: "try tunes until one ships" is multiple testing that no p value can see.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path

from luthier.errors import EvaluateError


def test_set_digest(ids: Iterable[str]) -> str:
    """sha256 of the sorted case ids."""
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()


def record_look(path: Path, *, test_set: str, artefact: str, num_cases: int, run_id: str) -> int:
    """Append this evaluation to the ledger and return m, the number of this artefact's first look (1-based).

    Locked, so that two processes never get the same m. A ledger that cannot be read is refused: fail closed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        artefacts = list(
            dict.fromkeys(look["artefact"] for look in _looks(path, file.read()) if look["test_set"] == test_set)
        )
        if artefact not in artefacts:
            artefacts.append(artefact)
        look = {
            "test_set": test_set,
            "num_cases": num_cases,
            "artefact": artefact,
            "look": artefacts.index(artefact) + 1,
            "run": run_id,
            "at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        file.write(json.dumps(look, sort_keys=True) + "\n")
        file.flush()
        os.fsync(file.fileno())
        return look["look"]


def _looks(path: Path, text: str) -> list[dict[str, str]]:
    looks = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            look = json.loads(line)
            looks.append({"test_set": str(look["test_set"]), "artefact": str(look["artefact"])})
        except (ValueError, KeyError, TypeError) as error:
            raise EvaluateError(
                f"{path}:{number}: this line of the test-set ledger cannot be read ({type(error).__name__})",
                hint="repair the line by hand; deleting the ledger would hide how often the test set was used",
            ) from error
    return looks
