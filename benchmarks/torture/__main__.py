"""`python -m benchmarks.torture`: the scoreboard of what a run survives.

Faults through one harness, against luthier's loop and transformers' Trainer: kills at every file event of a save,
random kills, refused writes, damaged files, SIGTERM, steps that are not finite, a long run. The other rows are counts
of tests (`suite.py`). Writes benchmarks/results/reliability.json and docs/reliability.md (`page.py`). A trial passes
when the same command, run again after the fault, ends with the weights of the uninterrupted run, bit for bit, and no
more than one save interval was done twice.
"""

from __future__ import annotations

import argparse
import errno
import json
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.torture.trial import (
    COUNT,
    DIE,
    ERROR_FROM,
    ERROR_ONCE,
    SIGNAL,
    TORN,
    Ended,
    Fault,
    Settings,
    preloaded,
    run_child,
)

if __name__ == "__main__":
    preloaded()

from benchmarks.torture.page import RESULTS, write_page
from benchmarks.torture.suite import SUITE, run_suite
from benchmarks.torture.targets import TARGETS

SETTINGS = Settings()


@dataclass(frozen=True)
class Size:
    """How many trials. kills: of R2; events: file events of R1 (0: all); damages: what R5 does to each file; places:
    file events of R6, each with three errors, luthier's all where 0 (HF Trainer's are always spread: they all fail
    alike). nan_steps: trials of R17; soak_steps: length of R29."""

    kills: int = 200
    events: int = 0
    damages: tuple[str, ...] = ("cut", "flip", "zero", "delete", "swap")
    places: int = 0
    nan_steps: int = 7
    soak_steps: int = 3000


class Bench:
    """One target: its uninterrupted run, and trials against it."""

    def __init__(self, name: str, root: Path, size: Size = Size()) -> None:
        self.size = size
        self.name, self.work, self.root, self.number = name, TARGETS[name], root, 0
        self.whole = run_child(self.work, root / "whole", SETTINGS, Fault(COUNT))
        if self.whole.code:
            sys.exit(f"{name}: the uninterrupted run fails\n{self.whole.said}")

    def folder(self) -> Path:
        self.number += 1
        return self.root / f"trial-{self.number}"

    def again(self, folder: Path, before: Ended, settings: Settings = SETTINGS, *, saves: bool = False) -> str:
        """Runs the same command again; the verdict. saves: the first run was asked to stop, so that every whole step
        should stand."""
        after = run_child(self.work, folder, settings, Fault())
        self.clear(folder)
        if after.code:
            return "HARD_FAIL"
        if after.digest != self.whole.digest:
            return "DIVERGED"
        promised = before.last if saves else max(0, before.last - settings.save_every)
        return "PASS" if not after.first or after.first - 1 >= promised else "LOST_WORK"

    def length_s(self) -> float:
        """Seconds of one undisturbed run."""
        folder = self.folder()
        ended = run_child(self.work, folder, SETTINGS, Fault())
        self.clear(folder)
        return ended.seconds

    def clear(self, folder: Path) -> None:
        """Removes a trial."""
        shutil.rmtree(folder.with_name(folder.name + ".out"))
        shutil.rmtree(folder)

    def save_events(self) -> list[tuple[int, str]]:
        """(number, what) of the file events of the fifth save, its rotation included."""
        lines = [line.split(" ", 2) for line in self.whole.events]
        starts = [int(n) for n, what, path in lines if what == "mkdir" and ("step-000005" in path or "point-5" in path)]
        ends = [int(n) for n, what, path in lines if what == "mkdir" and ("step-000006" in path or "point-6" in path)]
        return [(int(n), what) for n, what, _ in lines if starts[0] <= int(n) < ends[0]]


def kill_at_every_event(bench: Bench) -> dict:
    """R1: SIGKILL before every file event of one save, and half of every write."""
    events = bench.save_events()
    faults = [Fault(DIE, at) for at, _ in events] + [Fault(TORN, at) for at, what in events if what == "write"]
    return _tally(bench, _spread(faults, bench.size.events))


def _spread(items: list, count: int) -> list:
    """`count` of them, evenly spread; all for 0."""
    return items[:: -(-len(items) // count)] if count else items


def refuse_every_write(bench: Bench) -> dict:
    """R6: no space, an input/output error, a file system turned read-only, at places spread over one save."""
    places = [at for at, what in bench.save_events() if what in ("write", "open", "mkdir", "fsync")]
    kinds = ((ERROR_FROM, errno.ENOSPC), (ERROR_ONCE, errno.EIO), (ERROR_FROM, errno.EROFS))
    chosen = _spread(places, bench.size.places or (8 if bench.name == "HF Trainer" else 0))
    return _tally(bench, [Fault(how, at, number) for at in chosen for how, number in kinds])


def _tally(bench: Bench, faults: list[Fault]) -> dict:
    verdicts, codes = Counter(), Counter()
    for fault in faults:
        folder = bench.folder()
        before = run_child(bench.work, folder, SETTINGS, fault)
        codes[str(before.code)] += 1
        verdicts[bench.again(folder, before)] += 1
    return {"trials": len(faults), **verdicts, "exit codes": dict(codes)}


def random_kills(bench: Bench) -> dict:
    """R2: SIGKILL from outside: every other one uniformly in time over the run, the rest within 20 ms of the moment at
    which a randomly chosen save is seen to have begun. Where each landed is counted."""
    rng, verdicts, places = random.Random(0), Counter(), Counter()
    length_s = min(bench.length_s() for _ in range(3))
    for number in range(bench.size.kills):
        folder = bench.folder()
        if number % 2:
            kill_when = _soon_after_save(folder, rng.randint(1, SETTINGS.steps), rng.uniform(0, 0.02))
        else:
            kill_when = rng.uniform(0, length_s).__lt__
        before = run_child(bench.work, folder, SETTINGS, Fault(), kill_when=kill_when)
        places[_place(folder, before)] += 1
        verdicts[bench.again(folder, before)] += 1
    return {"trials": bench.size.kills, **verdicts, "landed": dict(places)}


def _soon_after_save(folder: Path, step: int, wait_s: float) -> Callable[[float], bool]:
    seen_s: list[float] = []

    def kill_when(spent_s: float) -> bool:
        if not seen_s and (
            any(folder.glob(f"checkpoints/.tmp-step-{step:06d}*")) or (folder / f"checkpoint-{step}").exists()
        ):
            seen_s.append(spent_s)
        return bool(seen_s) and spent_s >= seen_s[0] + wait_s

    return kill_when


def _place(folder: Path, before: Ended) -> str:
    if before.code == 0:
        return "after the end"
    if any(folder.glob("checkpoints/.tmp-step-*")) or any(
        not (p / "trainer_state.json").exists() for p in folder.glob("checkpoint-*")
    ):
        return "inside a save"
    return "between saves" if before.last else "before the first step"


def damaged_files(bench: Bench) -> dict:
    """R5: one file of the newest checkpoint cut, flipped, zeroed, deleted or exchanged with the one before."""
    verdicts: Counter[str] = Counter()
    made = bench.folder()
    before = run_child(bench.work, made, SETTINGS, Fault(DIE, bench.save_events()[-1][0] + 1))
    names = sorted(path.name for path in _newest_two(made)[0].iterdir() if path.is_file())
    for name in names:
        for fault in bench.size.damages:
            folder = bench.folder()
            shutil.copytree(made, folder)
            newest, older = _newest_two(folder)
            _damage(newest / name, older / name, fault)
            verdict = bench.again(folder, Ended(0, 0.0, last=max(0, before.last - 1)))
            verdicts[verdict] += 1
    bench.clear(made)
    return {"trials": sum(verdicts.values()), **verdicts}


def _newest_two(folder: Path) -> tuple[Path, Path]:
    root = folder / "checkpoints" if (folder / "checkpoints").exists() else folder
    found = [path for path in root.iterdir() if path.is_dir() and path.name.rpartition("-")[2].isdigit()]
    ordered = sorted((p for p in found if not p.name.startswith(".")), key=lambda p: int(p.name.rpartition("-")[2]))
    return ordered[-1], ordered[-2]


def _damage(path: Path, other: Path, fault: str) -> None:
    content = path.read_bytes()
    if fault == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif fault == "flip":
        place = len(content) * 2 // 3
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    elif fault == "zero":
        path.write_bytes(bytes(len(content)))
    elif fault == "delete":
        path.unlink()
    else:
        shutil.copy(other, path)


PHASES = {
    "luthier": ("start-up", "rehearsal", "step", "between", "evaluation", "task metrics", "after end"),
    "HF Trainer": ("start-up", "step", "between", "after end"),
}


def terminated(bench: Bench) -> dict:
    """R7: SIGTERM in each phase that the target has, and inside a save; checkpoints are rare, so that the answer to the
    signal itself has to save. HF Trainer with `enable_jit_checkpoint`, its own answer."""
    verdicts, codes, settings = Counter(), Counter(), Settings(save_every=5)
    inside = next(at for at, what in bench.save_events() if what == "write")
    faults = [*(Fault(term=phase) for phase in PHASES[bench.name]), Fault(SIGNAL, inside, signal.SIGTERM)]
    for fault in faults:
        folder, rare = bench.folder(), SETTINGS if fault.how == SIGNAL else settings
        before = run_child(bench.work, folder, rare, fault)
        codes[str(before.code)] += 1
        verdicts[bench.again(folder, before, rare, saves=True)] += 1
    return {"trials": len(faults), **verdicts, "exit codes": dict(codes)}


def not_finite(bench: Bench) -> dict:
    """R17: the loss of one step is NaN. PASS: that step moved no weight and is not told as a number."""
    verdicts: Counter[str] = Counter()
    for step in range(2, 2 + bench.size.nan_steps):
        folder = bench.folder()
        ended = run_child(bench.work, folder, SETTINGS, Fault(nan_at=step))
        bench.clear(folder)
        verdicts["HARD_FAIL" if ended.code else "PASS" if ended.facts["unmoved"] else "DIVERGED"] += 1
    return {"trials": bench.size.nan_steps, **verdicts}


def long_run(bench: Bench) -> dict:
    """R29: what the process holds after a third and at the end of a long run."""
    steps = bench.size.soak_steps
    folder = bench.folder()
    ended = run_child(bench.work, folder, Settings(save_every=100, steps=steps), Fault(), watch=(steps // 3, steps))
    bench.clear(folder)
    if ended.code:
        return {"trials": 1, "HARD_FAIL": 1}
    (began_s, early_bytes, *early), (end_s, late_bytes, *late) = ended.facts["held"]
    grown = (late_bytes - early_bytes) / 2**20
    figures = {"steps": steps, "grown MiB": round(grown, 2), "took s": round(end_s - began_s, 1)}
    holds = early == late and grown <= max(1.0, (end_s - began_s) / 60)
    return {"trials": 1, "PASS" if holds else "LEAKS": 1, **figures, "files, threads": [early, late]}


def same_twice(bench: Bench) -> dict:
    """R30: the same run again, three times."""
    verdicts: Counter[str] = Counter()
    for _ in range(3):
        folder = bench.folder()
        ended = run_child(bench.work, folder, SETTINGS, Fault())
        bench.clear(folder)
        verdicts["PASS" if ended.digest == bench.whole.digest else "DIVERGED"] += 1
    return {"trials": 3, **verdicts}


ROWS = {
    "R1": kill_at_every_event, "R2": random_kills, "R5": damaged_files, "R6": refuse_every_write, "R7": terminated,
    "R17": not_finite, "R29": long_run, "R30": same_twice,
}  # fmt: skip
QUICK = Size(kills=2, events=4, damages=("flip",), places=1, nan_steps=1, soak_steps=150)
QUICK_ROWS = ("R1", "R2", "R5", "R6", "R7", "R17", "R30")


def main() -> None:
    """Runs the wanted rows (default: all) and puts each into the results as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", help=f"of {', '.join([*ROWS, *SUITE])}; default: all")
    parser.add_argument("--target", choices=list(TARGETS), help="default: all")
    parser.add_argument("--kills", type=int, default=Size().kills, help="random kills (R2)")
    parser.add_argument("--trials-only", action="store_true", help="leave out the rows that are counts of tests")
    parser.add_argument("--quick", action="store_true", help="a few trials of each row, in half a minute")
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON file; what it has of other rows stays")
    wanted = parser.parse_args()
    if unknown := set(wanted.rows) - ROWS.keys() - SUITE.keys():
        parser.error(f"unknown rows: {', '.join(sorted(unknown))}")
    size = QUICK if wanted.quick else Size(kills=wanted.kills)
    chosen = wanted.rows or [*(QUICK_ROWS if wanted.quick else ROWS)]
    with tempfile.TemporaryDirectory() as folder:
        for name in [wanted.target] if wanted.target else TARGETS:
            if not any(row in ROWS for row in chosen):
                break
            bench = Bench(name, Path(folder) / name.replace(" ", "-"), size)
            for row in (row for row in chosen if row in ROWS):
                _measure(wanted.results, row, name, lambda row=row, bench=bench: ROWS[row](bench))
    tests = wanted.rows or (() if wanted.quick or wanted.target or wanted.trials_only else SUITE)
    for row in (row for row in tests if row in SUITE):
        _measure(wanted.results, row, "luthier", lambda row=row: run_suite(row))
    if wanted.results == RESULTS:
        write_page(RESULTS)


def _measure(results: Path, row: str, name: str, work: Callable[[], dict]) -> None:
    began = time.perf_counter()
    figures = work() | {"seconds": round(time.perf_counter() - began, 1)}
    print(row, name, figures, flush=True)
    _keep(results, row, name, figures)


def _keep(path: Path, row: str, name: str, figures: dict) -> None:
    report: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"rows": {}}
    versions = {package: version(package) for package in ("torch", "transformers")}
    report |= {
        "steps": SETTINGS.steps,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions,
    }
    report["rows"].setdefault(row, {})[name] = figures
    report["rows"] = dict(sorted(report["rows"].items(), key=lambda row: (int(row[0].split()[0][1:]), row[0])))
    path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
