"""DPO beside TRL's DPOTrainer at its best: pairs that share their prompt, the reference kept on both sides.

    LUTHIER_DATA=DIR python benchmarks/dpo_vs_trl.py [--steps N] [--rounds N] [--no-grid] [--orders]

DIR holds hh_harmless.jsonl.gz (Anthropic hh-rlhf, MIT; not part of this project): the short pairs that
recipes/hh_harmless_rows.py takes, in its order; --orders takes the rows of objective_rows.py instead. SmolLM2-135M,
LoRA of rank 8 on all linear layers, eight pairs a step, one thread. TRL's best is the fastest of dtype (micro-batch 4)
and then micro-batch {1, 2, 8}, by short runs, its reference log-probabilities computed beforehand as ours are;
padding-free batches it does not have for DPO (TRL 1.16 warns and pads). Then both sides take the same steps on the same
pairs, in turn, in processes of their own. Tokens count whole for both sides: prompt + answer of each side of a pair.
Ratios are of processor time, over every step but the first. The result goes to benchmarks/results/dpo_vs_trl.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from objectives import BASE, ROOT, ROWS_PER_STEP, STEPS, first_rows, in_own_process, leave, opened, speed_of, take_steps

from luthier.config.load import load_project

RESULT = ROOT / "benchmarks/results/dpo_vs_trl.json"
DTYPES = ("float32", "bf16-autocast", "bf16-weights")
OURS = ("float32", "int8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--no-grid", action="store_true", help="TRL's best is float32 in micro-batches of 4")
    parser.add_argument("--orders", action="store_true", help="rows of this project instead of hh-rlhf's")
    parser.add_argument("--child", nargs=2, metavar=("WHAT", "JOB"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(*given.child)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        path = write_project(Path(folder) / "project", given.orders)
        result = compare(path, given.steps, given.rounds, given.no_grid)
    result["pairs"] = "orders" if given.orders else "hh_harmless"
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: result[key] for key in ("best", "tokens_per_cpu_s", "ratio")}))
    return 0


def write_project(folder: Path, orders: bool) -> Path:
    """A DPO project over the pairs, unsplit."""
    if orders:
        from objective_rows import write_project as write_orders

        return write_orders(folder, "dpo", BASE)
    folder.mkdir(parents=True)
    maker = ROOT / "recipes/hh_harmless_rows.py"
    subprocess.run([sys.executable, maker, os.environ.get("LUTHIER_DATA", ""), folder], check=True)
    path = folder / "luthier.yaml"
    path.write_text(
        f"model: {{base: {BASE}}}\n"
        "data: {train: [pairs.jsonl], format: preference, split: {by: column, column: choosing}, limit_rows: 64, "
        "limit_dev_rows: 8, over_length: quarantine}\n"
        "loss: {kind: dpo}\nadapter: {lora_r: 8, lora_alpha: 16}\n"
        "train: {sequence_len: 256, micro_batch_tokens: 4096, num_threads: 1}\noutput_dir: out\n"
    )
    return path


def compare(path: Path, steps: int, rounds: int, no_grid: bool) -> dict[str, Any]:
    """TRL's best, then both sides in turn."""
    job = {"path": str(path), "kind": "dpo", "steps": steps, "rows_per_step": ROWS_PER_STEP, "dtype": "float32"}
    ours = in_own_process(__file__, "ours", job)  # also writes down the rows, and keeps the reference
    job |= {"rows": ours["rows"], "base": ours["base"], "micro_batch": 4}
    tokens = ours["step_tokens"]
    tried = [] if no_grid else [_tried(job, tokens, {"dtype": dtype}) for dtype in DTYPES]
    best = max(tried, key=lambda one: one["tokens_per_cpu_s"])["setting"] if tried else {"dtype": "float32"}
    tried += [] if no_grid else [_tried(job, tokens, best | {"micro_batch": size}) for size in (1, 2, 8)]
    best = max(tried, key=lambda one: one["tokens_per_cpu_s"])["setting"] if tried else best
    found: dict[str, list[dict[str, Any]]] = {}
    for _ in range(rounds):
        found.setdefault("trl", []).append(in_own_process(__file__, "trl", job | best))
        for dtype in OURS:
            found.setdefault(f"luthier {dtype}", []).append(in_own_process(__file__, "ours", job | {"dtype": dtype}))
    speeds = {who: statistics.median(speed_of(one["ends"], tokens) for one in runs) for who, runs in found.items()}
    return {
        "best": best, "grid": tried, "tokens": sum(tokens), "steps": steps, "rounds": rounds,
        "tokens_per_cpu_s": speeds, "ratio": {who: speed / speeds["trl"] for who, speed in speeds.items()},
        "peak_bytes": {who: max(one["peak_bytes"] for one in runs) for who, runs in found.items()},
    }  # fmt: skip


def _tried(job: dict[str, Any], tokens: list[int], setting: dict[str, Any]) -> dict[str, Any]:
    speed = speed_of(in_own_process(__file__, "trl", job | setting)["ends"], tokens)
    print(f"{speed:8.1f} tokens/s of processor time, TRL {setting}", flush=True)
    return {"setting": setting, "tokens_per_cpu_s": speed}


def child(what: str, path: str) -> None:
    """Entry of a child process."""
    job = json.loads(Path(path).read_text())
    if what == "trl":
        from objective_trl import run_trl

        found = run_trl(job)
    else:
        with (
            tempfile.TemporaryDirectory() as folder,
            opened(load_project(Path(job["path"])), Path(folder) / "work", job["dtype"], {"loss": 0.0}) as at,
        ):
            found = take_steps(at, job["steps"])
            found |= {"rows": first_rows(at, job["steps"] * ROWS_PER_STEP), "base": str(at.base)}
    leave(job, found)


if __name__ == "__main__":
    sys.exit(main())
