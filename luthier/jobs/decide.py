"""`luthier decide --from samples.jsonl`: the verdict again, from what was recorded; no model, byte for byte."""

from __future__ import annotations

from pathlib import Path

from luthier.errors import ConfigError
from luthier.evaluate.verdict import decide as decide_samples
from luthier.jobs import console
from luthier.store.publish import write_atomic


def decide(samples: Path, output: Path | None) -> int:
    """Prints the verdict (and writes verdict.json when asked). Returns its exit code."""
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
