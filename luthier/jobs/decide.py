"""`luthier decide --from samples.jsonl`: the verdict again, from what was recorded; no model, byte for byte."""

from __future__ import annotations

from pathlib import Path

from luthier.errors import ConfigError, EvaluateError
from luthier.evaluate.verdict import decide as decide_samples
from luthier.jobs import console
from luthier.store.publish import MANIFEST, digest_file, read_manifest, write_atomic


def _refuse_changed(samples: Path) -> None:
    """EvaluateError where the manifest beside the file says that the evaluation wrote another one."""
    if not samples.is_file() or not (samples.parent / MANIFEST).is_file():
        return
    sealed = {entry["name"]: entry["sha256"] for entry in read_manifest(samples.parent)["files"]}
    if sealed.get(samples.name, digest_file(samples)) != digest_file(samples):
        raise EvaluateError(
            f"{samples}: not the file that this evaluation wrote (its sha256 in {MANIFEST} is another)",
            hint=f"`luthier verify {samples.parent}`; a copy put elsewhere is judged as it is",
        )


def decide(samples: Path, output: Path | None) -> int:
    """Prints the verdict (and writes verdict.json when asked). Returns its exit code."""
    _refuse_changed(samples)
    verdict = decide_samples(samples)
    console.line(f"{verdict.verdict}: {verdict.reason}")
    if output is not None:
        try:
            write_atomic(output, verdict.as_text())
        except OSError as error:
            raise ConfigError(
                f"{output}: cannot be written ({error.strerror})", hint="-o names a file in a folder that you own"
            ) from error
    return verdict.exit_code
