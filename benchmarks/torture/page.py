"""docs/reliability.md from benchmarks/results/reliability.json: `python -m benchmarks.torture.page`."""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "reliability.json", ROOT / "docs" / "reliability.md"
VERDICTS = ("PASS", "LOST_WORK", "DIVERGED", "HARD_FAIL")
CHAOS = "https://github.com/rkb32/ckpt-chaos/blob/21d07783e11a23c3688820388d4b4500e73a29a1/README.md"
TITLES = {
    "R1": "SIGKILL before every file event of one save, and after half of every write",
    "R2": "SIGKILL from outside: every other one at a random time of the run, the rest within 20 ms of a save's begin",
    "R5": "each file of the newest checkpoint cut, one bit flipped, zeroed, deleted, exchanged with the one before",
    "R6": "ENOSPC, EIO, EROFS at file events spread over one save",
}
PUBLISHED = {
    "R1": f"HF Trainer 5.18.0: 2/19, with two processes 1/22 ([ckpt-chaos]({CHAOS}); Windows, other file events)",
}
HEAD = """# Reliability: what was done to a run, and how it ended

Made by `make torture` (`benchmarks/torture/`), from `benchmarks/results/reliability.json`. One tiny Llama with dropout,
{steps} steps, a save after every step, on one CPU thread. A trial is a run with one fault; then the same command is run
again, as its user would. luthier here is its training loop (`engine/loop.py`); HF Trainer is transformers' own, started
as its documentation has it: `resume_from_checkpoint` is the last checkpoint when there is one. Both get the same faults
from the same harness.

- **PASS**: the final weights are those of the uninterrupted run, bit for bit, and at most one save interval was done
  twice.
- **LOST_WORK**: equal weights, more done twice. **DIVERGED**: it ended, with other weights, and with exit code 0.
- **HARD_FAIL**: the second run fails as well, until somebody cleans up by hand.

"""
FOOT = """
The hard failures of HF Trainer in R1 that were looked into have one cause: the newest `checkpoint-N` counts as whole
without a look inside ([transformers#35525](https://github.com/huggingface/transformers/issues/35525)). Its checkpoints
have more files and more writes, hence more trials. Exit code 0 in R6: the error came to a `mkdir` of a folder that was
there already.

No failure in n trials bounds the chance of one at 3/n (95%), not at zero. A process is killed, not the machine: what
the kernel had taken but not yet written is not lost, so a power failure is not tested. safetensors renames its finished
file by a system call of its own that the shim does not see; the events before and after it are seen.
"""


def write_page(results: Path = RESULTS) -> None:
    """Writes the page from the results."""
    report = json.loads(results.read_text())
    parts = [HEAD.format(steps=report["steps"]), "| row | what | luthier | HF Trainer here | published by others |\n"]
    parts.append("|---|---|---|---|---|\n")
    for row, targets in report["rows"].items():
        cells = [_cell(targets.get(name)) for name in ("luthier", "HF Trainer")]
        parts.append(f"| {row} | {TITLES[row]} | {' | '.join(cells)} | {PUBLISHED.get(row, 'none found')} |\n")
    for name, figures in report["rows"].get("R2", {}).items():
        landed = ", ".join(f"{where} {count}" for where, count in sorted(figures["landed"].items()))
        parts.append(f"\nWhere the kills of R2 landed, {name}: {landed}.\n")
    for name, figures in report["rows"].get("R6", {}).items():
        codes = ", ".join(f"{code}: {count}" for code, count in sorted(figures["exit codes"].items()))
        parts.append(f"\nExit codes of the runs that were refused in R6, {name}: {codes}.\n")
    versions = ", ".join(f"{package} {number}" for package, number in report["versions"].items())
    parts.append(f"\nMeasured with Python {report['python']}, {versions}, {report['system']}.\n")
    PAGE.write_text("".join(parts) + FOOT)


def _cell(figures: dict | None) -> str:
    if figures is None:
        return "not run"
    failed = ", ".join(f"{figures[verdict]} {verdict}" for verdict in VERDICTS[1:] if figures.get(verdict))
    return f"{figures.get('PASS', 0)}/{figures['trials']} PASS" + (f" ({failed})" if failed else "")


if __name__ == "__main__":
    write_page()
