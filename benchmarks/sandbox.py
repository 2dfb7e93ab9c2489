"""What the sandbox costs: runs a second against a bare `python -I -S` of the same program and tests, in one process.

    python benchmarks/sandbox.py [--runs N] [--rounds N]

Both sides run the same right program with its tests, in alternating rounds. Bare means a new interpreter a run with no
protection at all: what a harness pays that trusts everything. Wall time and processor time of the children; the
ratio of the two sides is the figure to quote, because it does not depend on how busy the machine is.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from luthier.graders.sandbox.box import SandboxPool

PROGRAM = "def primes(n):\n    return [i for i in range(2, n) if all(i % j for j in range(2, i))]"
TESTS = "assert primes(10) == [2, 3, 5, 7]\nassert primes(2) == []\nassert len(primes(100)) == 25"


def bare() -> None:
    """One run without any protection."""
    done = subprocess.run([sys.executable, "-I", "-S", "-c", f"{PROGRAM}\n{TESTS}"], check=False)
    assert done.returncode == 0


def timed(action: Callable[[], None], runs: int) -> float:
    """Milliseconds of wall time a run."""
    started = time.perf_counter()
    for _ in range(runs):
        action()
    return (time.perf_counter() - started) / runs * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    started = time.perf_counter()
    pool = SandboxPool()
    start_ms = (time.perf_counter() - started) * 1e3

    def single() -> None:
        assert pool.run(PROGRAM, TESTS).passed

    def side_by_side() -> float:
        begun = time.perf_counter()
        assert all(result.passed for result in pool.run_all([(PROGRAM, TESTS, "")] * options.runs))
        return options.runs / (time.perf_counter() - begun)

    side_by_side()
    rounds = [(timed(bare, options.runs), timed(single, options.runs), side_by_side()) for _ in range(options.rounds)]
    cpu_ms = statistics.median(pool.run(PROGRAM, TESTS).cpu_s for _ in range(options.runs)) * 1e3
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    timed(bare, options.runs)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    bare_cpu_ms = (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / options.runs * 1e3
    figures = {
        "tier": pool.tier,
        "start_and_self_attack_ms": round(start_ms),
        "bare_ms": round(statistics.median(r[0] for r in rounds), 1),
        "sandbox_ms": round(statistics.median(r[1] for r in rounds), 1),
        "ratio": round(statistics.median(r[1] / r[0] for r in rounds), 2),
        "pool_size": pool.size,
        "pool_runs_a_second": round(statistics.median(r[2] for r in rounds)),
        "bare_cpu_ms": round(bare_cpu_ms, 1),
        "sandbox_cpu_ms": round(cpu_ms, 1),
    }
    pool.close()
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
