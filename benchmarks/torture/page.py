"""docs/reliability.md from benchmarks/results/reliability.json: `python -m benchmarks.torture.page`."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.torture.suite import NOT_HERE, ROOT, SUITE

RESULTS, PAGE = ROOT / "benchmarks" / "results" / "reliability.json", ROOT / "docs" / "reliability.md"
VERDICTS = ("PASS", "LOST_WORK", "DIVERGED", "HARD_FAIL")
CHAOS = "https://github.com/rkb32/ckpt-chaos/blob/21d07783e11a23c3688820388d4b4500e73a29a1/README.md"
TITLES = {
    "R1": "SIGKILL before every file event of one save, and after half of every write",
    "R2": "SIGKILL from outside: every other one at a random time of the run, the rest within 20 ms of a save's begin",
    "R5": "each file of the newest checkpoint cut, one bit flipped, zeroed, deleted, exchanged with the one before",
    "R6": "ENOSPC, EIO, EROFS at file events of one save",
    "R7": "SIGTERM in each phase of the loop and inside a save, checkpoints far apart: no whole step is done twice",
    "R17": "the loss of one step is NaN: no weight moves",
    "R29": "a long run: memory grows by less than 1 MiB a minute; open files and threads stay as many",
    "R30": "the same run three times: the same weights",
}
PUBLISHED = {
    "R1": f"HF Trainer 5.18.0: 2/19, with two processes 1/22; Lightning 2.6.6: 3/5 and 2 LOST_WORK "
    f"([ckpt-chaos]({CHAOS}); Windows, other file events)",
    "R3": "Composer: 6 places, whole checkpoint equal; HF Trainer's own test of a resume with random draws is skipped",
    "R5": "an SHA-256 guard finds 99.8-100% of 1,600 injected damages (arXiv 2511.18323)",
    "R17": "torchtitan stops before the update; HF Trainer logs the mean of the steps before (trl#6702)",
    "R19": "Composer: half the micro-batch, same batch again; HF Trainer: starts over with another batch size",
    "R30": "torchtitan: committed loss curves",
}
HEAD = """# Reliability: what was done to a run, and how it ended

Made by `make torture` (`benchmarks/torture/`), from `benchmarks/results/reliability.json`: two kinds of rows.

Trials: one tiny Llama with dropout, {steps} steps, a save after every step, on one CPU thread. A trial is a run with
one fault; then the same command is run again, as its user would. luthier here is its training loop
(`engine/loop.py`); HF Trainer is transformers' own, started as its documentation has it: `resume_from_checkpoint` is
the last checkpoint when there is one. Both get the same faults from the same harness.

- **PASS**: the final weights are those of the uninterrupted run, bit for bit, and at most one save interval was done
  twice.
- **LOST_WORK**: equal weights, more done twice. **DIVERGED**: it ended, with other weights, and with exit code 0.
- **HARD_FAIL**: the second run fails as well, until somebody cleans up by hand.

Tests: rows that need no harness are counts of luthier's own tests; `benchmarks/torture/suite.py` names them.

"""
FOOT = """
The hard failures of HF Trainer in R1 that were looked into have one cause: the newest `checkpoint-N` counts as whole
without a look inside ([transformers#35525](https://github.com/huggingface/transformers/issues/35525)). Its checkpoints
have more files and more writes, hence more trials. Exit code 0 in R6: the error came to a `mkdir` of a folder that was
there already; 1: to the loop's log, which the command line ends with 74 as well.

No failure in n trials bounds the chance of one at 3/n (95%), not at zero. A process is killed, not the machine: what
the kernel had taken but not yet written is not lost, so a power failure is not tested. safetensors renames its finished
file by a system call of its own that the shim does not see; the events before and after it are seen. R7 asks HF Trainer
with `enable_jit_checkpoint`, which is off unless it is asked for. R29 is training alone, without a server.
"""


def write_page(results: Path = RESULTS) -> None:
    """Writes the page from the results."""
    report = json.loads(results.read_text())
    parts = [HEAD.format(steps=report["steps"]), "| row | what | luthier | HF Trainer here | published by others |\n"]
    parts.append("|---|---|---|---|---|\n")
    for row in sorted({*TITLES, *SUITE, *NOT_HERE}, key=lambda row: (int(row.split()[0][1:]), row)):
        parts.append(_line(row, report["rows"].get(row, {})))
    for name, figures in report["rows"].get("R2", {}).items():
        landed = ", ".join(f"{where} {count}" for where, count in sorted(figures["landed"].items()))
        parts.append(f"\nWhere the kills of R2 landed, {name}: {landed}.\n")
    for name, figures in report["rows"].get("R6", {}).items():
        codes = ", ".join(f"{code}: {count}" for code, count in sorted(figures["exit codes"].items()))
        parts.append(f"\nExit codes of the runs that were refused in R6, {name}: {codes}.\n")
    versions = ", ".join(f"{package} {number}" for package, number in report["versions"].items())
    parts.append(f"\nMeasured with Python {report['python']}, {versions}, {report['system']}.\n")
    PAGE.write_text("".join(parts) + FOOT)


def _line(row: str, targets: dict) -> str:
    if row in NOT_HERE:
        what, why = NOT_HERE[row]
        return f"| {row} | {what} | {why} | - | - |\n"
    what = SUITE[row].what if row in SUITE else TITLES[row]
    there = "-" if row in SUITE else _cell(targets.get("HF Trainer"))
    return f"| {row} | {what} | {_cell(targets.get('luthier'))} | {there} | {PUBLISHED.get(row, 'none found')} |\n"


def _cell(figures: dict | None) -> str:
    if figures is None:
        return "not run"
    if "failed" in figures:
        skipped = f", {figures['skipped']} skipped" if figures["skipped"] else ""
        return f"{figures['PASS']}/{figures['trials']} tests{skipped}"
    if "grown MiB" in figures:
        held = f"{figures['grown MiB']:+.1f} MiB in {figures['took s']:.0f} s, {figures['steps']} steps"
        return f"{'PASS' if figures.get('PASS') else 'LEAKS'} ({held})"
    failed = ", ".join(f"{figures[verdict]} {verdict}" for verdict in VERDICTS[1:] if figures.get(verdict))
    return f"{figures.get('PASS', 0)}/{figures['trials']} PASS" + (f" ({failed})" if failed else "")


if __name__ == "__main__":
    write_page()
