"""Speed and memory of LoRA fine-tuning on a CPU: luthier against TRL + PEFT, honestly.

    python benchmarks/sft_vs_trl.py [--data FOLDER|ROWS.jsonl] [--rows N] [--steps N] [--rounds N] [--no-grid]
    python benchmarks/sft_vs_trl.py --rows-like shared-prefix [--rows-per-step 32] ...

Same base, rows, mask, rank, targets, start values, optimizer, rate, seed and step count. TRL runs first, and the rows
that its collator really put into each step are written down; luthier then trains on exactly those. Runs alternate,
each in a process of its own with OMP_WAIT_POLICY=PASSIVE and the same threads. A run counts only if every gradient
norm is above zero, and luthier's only if its loss curve is the float32 one; TRL's distance to it is shown. Speed is
non-padding tokens a second, median over steps (the first is warm-up) and rounds; the ratio by processor time stands
beside it, because other work on the machine disturbs it less. Two peers: TRL as it comes (SFTConfig's defaults:
gradient checkpointing, bf16 autocast, padded batches of 8), and TRL's best, the fastest of dtype x recompute x packing
x micro-batch {1,2,4,8}, found by short runs: dtype and recompute first, then the rest. luthier runs in each of its
dtypes. All of it goes into benchmarks/results/.
--rows-like shared-prefix takes the rows of shared_prefix.py, 32 a step, instead of --data; luthier computes what the
rows of a step share once, and a row's tokens still count whole for both sides.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from shared_prefix import shared_prefix_rows

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"
ROWS_PER_STEP = {"data": 8, "shared-prefix": 32}
MAX_LENGTH = 1024
LEARNING_RATE = 2e-4
DTYPES = ("float32", "bf16-autocast", "bf16-weights")
OUR_DTYPES = ("float32", "bfloat16", "int8")
DEFAULTS = {"kind": "trl", "dtype": "bf16-autocast", "recompute": True, "packing": "none", "micro_batch": 8}
# How far the loss curves may be apart, relative: float32 differs by rounding, half precision by its own error.
TOLERANCE = {"float32": 2e-3, "half": 6e-2}


def read_rows(path: Path, base: Path, folder: Path, count: int) -> list:
    """The first `count` training rows, encoded: of a project folder (prepared on the spot), or of a JSONL file with
    prompt and completion (or question and answer) columns.
    """
    from luthier.bases.tokenizer import Tokenizer
    from luthier.chat.codec import ChatCodec
    from luthier.config.load import load_project
    from luthier.data.prepare import prepare
    from luthier.data.stored import read_encoded
    from luthier.types import Row

    codec = ChatCodec(Tokenizer.load(base))
    if path.is_dir():
        config = load_project(path / "luthier.yaml").spec
        out = folder / "prepared"
        out.mkdir()
        prepare(config.data, codec=codec, sequence_len=config.train.sequence_len, out=out, base_dir=path)
        encoded = read_encoded(out, "train")
        rows = [encoded[index] for index in range(min(count, len(encoded)))]
    else:
        rows = []
        for line in path.read_text(encoding="utf-8").splitlines()[:count]:
            raw = json.loads(line)
            prompt, answer = ("prompt", "completion") if "prompt" in raw else ("question", "answer")
            turns = ({"role": "user", "content": raw[prompt]}, {"role": "assistant", "content": raw[answer]})
            rows += codec.encode(Row(id=f"row-{len(rows)}", messages=turns))
    if len(rows) < count:
        raise SystemExit(f"{path}: {len(rows)} rows, {count} asked for")
    return rows


def write_inputs(folder: Path, base: Path, rows: list) -> list[int]:
    """Writes the rows for both sides and draws the adapter's start values once. Returns the rows' lengths."""
    from luthier.adapters.lora import apply_lora
    from luthier.adapters.peft_files import save_adapter
    from luthier.config.adapter import AdapterSpec
    from luthier.models.load import load_model

    lengths = [len(row.ids) for row in rows]
    if max(lengths) > MAX_LENGTH:
        raise SystemExit(f"a row has {max(lengths)} tokens; nothing is cut here, so give rows of at most {MAX_LENGTH}")
    plain = [{"ids": [int(i) for i in row.ids], "trained": [int(flag) for flag in row.trained]} for row in rows]
    (folder / "rows.json").write_text(json.dumps(plain))
    model = load_model(base)
    save_adapter(apply_lora(model, AdapterSpec(), seed=0), folder / "start", str(base))
    return lengths


def child_luthier(job: dict) -> dict:
    """Trains with luthier's engine on `job["groups"]`: the row indices of each step."""
    from luthier.adapters.stored import load_adapter
    from luthier.config.train import TrainSpec
    from luthier.data.pack import make_batch, make_shared_batch
    from luthier.engine.loop import train
    from luthier.kernels.allocator import keep_freed_memory
    from luthier.losses.sft import sft_loss_sum
    from luthier.models.int8 import load_frozen
    from luthier.types import EncodedRow

    keep_freed_memory()
    raw = json.loads((Path(job["inputs"]) / "rows.json").read_text())
    rows = [EncodedRow(str(i), tuple(r["ids"]), tuple(map(bool, r["trained"]))) for i, r in enumerate(raw)]
    model = load_frozen(Path(job["base"]), dtype=job["dtype"], sample=make_batch(rows[:16]))
    load_adapter(model, Path(job["inputs"]) / "start")
    spec = TrainSpec(
        micro_batch_tokens=1 << 20, learning_rate=LEARNING_RATE, lr_scheduler="constant", warmup_ratio=0.0, seed=0
    )
    ends: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as run_dir:
        train(
            model, sft_loss_sum, spec, train_set=rows, dev_set=None,
            make_batch=make_shared_batch if job["share_prefix"] else make_batch,
            plan_epoch=lambda *_: job["groups"], run_dir=Path(run_dir),
            progress=lambda done, total, **_: ends.append(clocks()),
        )  # fmt: skip
        log = [json.loads(line) for line in (Path(run_dir) / "metrics.jsonl").read_text().splitlines()]
    return {
        "ends": ends,
        "losses": [line["loss"] for line in log],
        "grad_norms": [line["grad_norm"] for line in log],
        "groups": job["groups"],
    }


def child_trl(job: dict) -> dict:
    """Trains with TRL's SFTTrainer and PEFT's own LoRA; writes down which rows each step really saw."""
    import torch
    from datasets import Dataset
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    raw = json.loads((Path(job["inputs"]) / "rows.json").read_text())
    dtype = torch.bfloat16 if job["dtype"] == "bf16-weights" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(job["base"], dtype=dtype)
    model = PeftModel.from_pretrained(model, str(Path(job["inputs"]) / "start"), is_trainable=True)
    packed, micro = job["packing"] == "bfd", job["micro_batch"]
    ends, seen = [], []
    index_of: dict[tuple[int, ...], list[int]] = {}
    for index, row in enumerate(raw):
        index_of.setdefault(tuple(row["ids"]), []).append(index)

    class Timer(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            ends.append(clocks())

    class Recording(SFTTrainer):
        def training_step(self, model, inputs, *args, **kwargs):
            seen.append(
                {
                    name: inputs[name].clone()
                    for name in ("input_ids", "attention_mask", "position_ids")
                    if name in inputs
                }
            )
            return super().training_step(model, inputs, *args, **kwargs)

    accumulation = 1 if packed else job["rows_per_step"] // micro
    with tempfile.TemporaryDirectory() as out:
        config = SFTConfig(
            output_dir=out, report_to="none", use_cpu=True, seed=0, data_seed=0, logging_steps=1, save_strategy="no",
            max_steps=job["steps"], learning_rate=LEARNING_RATE, lr_scheduler_type="constant",
            max_length=None if job["packing"] == "padding-free" else MAX_LENGTH,
            per_device_train_batch_size=micro, gradient_accumulation_steps=accumulation, completion_only_loss=True,
            train_sampling_strategy="sequential", disable_tqdm=True, optim="adamw_torch_fused",
            bf16=job["dtype"] != "float32", gradient_checkpointing=job["recompute"], packing=packed,
            padding_free=job["packing"] == "padding-free",
        )  # fmt: skip
        dataset = Dataset.from_list([{"input_ids": row["ids"], "completion_mask": row["trained"]} for row in raw])
        trainer = Recording(
            model=model, args=config, train_dataset=dataset, callbacks=[Timer()],
            processing_class=AutoTokenizer.from_pretrained(job["base"]),
        )  # fmt: skip
        trainer.train()
    log = [line for line in trainer.state.log_history if "loss" in line]
    micro_rows = [[index_of[ids][0] for ids in documents(batch)] for batch in seen]
    return {
        "ends": ends,
        "losses": [line["loss"] for line in log],
        "grad_norms": [float(line["grad_norm"]) for line in log],
        "groups": [
            [index for micro_batch in micro_rows[i : i + accumulation] for index in micro_batch]
            for i in range(0, len(micro_rows), accumulation)
        ],
    }


def documents(batch: dict) -> list[tuple[int, ...]]:
    """The rows inside one of TRL's batches, padding removed."""
    ids = batch["input_ids"].tolist()
    if "position_ids" in batch:  # packed or padding-free: a row starts where positions restart
        starts = [i for i, position in enumerate(batch["position_ids"][0].tolist()) if position == 0]
        return [tuple(ids[0][a:b]) for a, b in zip(starts, [*starts[1:], len(ids[0])], strict=True)]
    mask = batch["attention_mask"].tolist()
    return [tuple(t for t, keep in zip(row, kept, strict=True) if keep) for row, kept in zip(ids, mask, strict=True)]


def run_child(job: dict, threads: int) -> dict:
    """One run in a process of its own. Raises SystemExit with its last lines when it fails."""
    env = os.environ | {
        "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1", "THP_MEM_ALLOC_ENABLE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.json"
        path.write_text(json.dumps(job | {"out": str(Path(folder) / "out.json")}))
        done = subprocess.run([sys.executable, __file__, "--child", str(path)], env=env, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"run failed: {label(job)}\n{done.stderr[-3000:]}")
        return json.loads((Path(folder) / "out.json").read_text())


def child_main(path: str) -> None:
    """Entry of a child process."""
    job = json.loads(Path(path).read_text())
    result = {"luthier": child_luthier, "trl": child_trl}[job["kind"]](job)
    result["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    Path(job["out"]).write_text(json.dumps(result))


def label(job: dict) -> str:
    """Short name of a setting."""
    if job["kind"] == "luthier":
        return f"luthier {job['dtype']}"
    recompute = "recompute" if job["recompute"] else "no recompute"
    return f"trl {job['dtype']}, {recompute}, packing {job['packing']}, micro-batch {job['micro_batch']}"


def clocks() -> tuple[float, float]:
    """Seconds on the wall and seconds of processor time, all threads."""
    return time.perf_counter(), time.process_time()


def speeds(result: dict, lengths: list[int], clock: int = 0) -> list[float]:
    """Non-padding tokens a second of every step but the first; clock 1: a second of processor time."""
    tokens = [sum(lengths[index] for index in group) for group in result["groups"]]
    took_s = [b[clock] - a[clock] for a, b in zip(result["ends"], result["ends"][1:], strict=False)]
    return [count / seconds for count, seconds in zip(tokens[1:], took_s, strict=True)]


def check_learning(result: dict, job: dict) -> None:
    """A run that does not learn is not a measurement (zero gradients have been published as speed records)."""
    if not all(norm > 0 for norm in result["grad_norms"]):
        raise SystemExit(f"{label(job)}: a gradient norm is not above zero: {result['grad_norms']}")


def curve_distance(result: dict, reference: dict) -> float:
    """Largest relative distance of a loss curve to the float32 reference on the same rows."""
    return max(abs(a - b) / b for a, b in zip(result["losses"], reference["losses"], strict=True))


def check_curve(distance: float, job: dict) -> None:
    """Raises SystemExit for a curve of ours beyond what its dtype allows."""
    allowed = TOLERANCE["float32" if job["dtype"] == "float32" else "half"]
    if distance > allowed:
        raise SystemExit(f"{label(job)}: the loss curve is {distance:.2%} off float32 (allowed {allowed:.2%})")


def find_best(common: dict, lengths: list[int], threads: int, steps: int) -> tuple[dict, list[dict]]:
    """TRL's fastest setting by short runs: dtype x recompute at micro-batch 4 first, then packing x micro-batch."""
    tried: list[dict] = []

    def speed(**changes) -> float:
        job = common | {"kind": "trl", "steps": steps} | changes
        result = run_child(job, threads)
        check_learning(result, job)
        value = statistics.median(speeds(result, lengths))
        tried.append({"setting": changes, "tokens_per_s": value, "peak_bytes": result["peak_bytes"]})
        print(f"  {value:8.1f} tokens/s  {label(job)}", flush=True)
        return value

    first = [
        {"dtype": dtype, "recompute": recompute, "packing": "none", "micro_batch": 4}
        for dtype in DTYPES
        for recompute in (False, True)
    ]
    best = max(first, key=lambda setting: speed(**setting))
    second = [
        best | {"packing": packing, "micro_batch": micro}
        for packing in ("none", "padding-free", "bfd")
        for micro in (1, 2, 4, 8)
        if (packing, micro) != ("none", 4) and not (packing == "bfd" and micro * steps * 6 > len(lengths))
    ]
    for setting in second:
        speed(**setting)
    fastest = max(tried, key=lambda entry: entry["tokens_per_s"])
    return fastest["setting"], tried


def measure(peers: dict[str, dict], common: dict, lengths: list[int], args: argparse.Namespace) -> dict:
    """Interleaved rounds: each peer, then luthier in every dtype on the rows that the peer's steps really saw.

    Curves are held against luthier in float32 on the same rows (itself held against TRL in float32 when that is a
    peer). Peers whose steps saw the same rows share luthier's runs of the round.
    """
    figures: dict[str, dict] = {}
    for round_number in range(args.rounds):
        ours: dict[str, dict[str, dict]] = {}
        for name, setting in peers.items():
            job = common | {"kind": "trl", "steps": args.steps} | setting
            theirs = run_child(job, args.threads)
            rows = json.dumps(theirs["groups"])
            if rows not in ours:
                jobs = {dtype: common | {"kind": "luthier", "dtype": dtype} for dtype in OUR_DTYPES}
                ours[rows] = {
                    dtype: run_child(each | {"groups": theirs["groups"]}, args.threads) for dtype, each in jobs.items()
                }
            entry = figures.setdefault(name, {"setting": setting, "trl": {}, **{dtype: {} for dtype in OUR_DTYPES}})
            results = {"trl": (theirs, job)} | {
                dtype: (result, {"kind": "luthier", "dtype": dtype}) for dtype, result in ours[rows].items()
            }
            for who, (result, its_job) in results.items():
                check_learning(result, its_job)
                off = curve_distance(result, ours[rows]["float32"])
                if who != "trl":  # a peer's own rounding is shown, not held against it
                    check_curve(off, its_job)
                _add(entry[who], result, off, lengths)
            print(f"  round {round_number + 1} of {args.rounds}: {name} done", flush=True)
    for entry in figures.values():
        for who in ("trl", *OUR_DTYPES):
            entry[who]["tokens_per_s"] = statistics.median(entry[who]["all"])
            entry[who]["tokens_per_cpu_s"] = statistics.median(entry[who]["all_cpu"])
            for unit in ("s", "cpu_s"):
                entry[who][f"ratio_by_{unit}"] = entry[who][f"tokens_per_{unit}"] / entry["trl"][f"tokens_per_{unit}"]
    return figures


def _add(figures: dict, result: dict, off: float, lengths: list[int]) -> None:
    figures.setdefault("all", []).extend(speeds(result, lengths))
    figures.setdefault("all_cpu", []).extend(speeds(result, lengths, clock=1))
    figures |= {"peak_bytes": result["peak_bytes"], "losses": result["losses"], "curve_off_float32": off}


def roof(base_folder: Path, threads: int, rows: list) -> dict:
    """Tokens a second if nothing but the frozen products were computed, at the probe's rates: 4 N operations a token
    for the N parameters of the layers, and for those of the head only where a token is trained.
    """
    from luthier.bases.shapes import read_shapes
    from luthier.models.probe import probe_machine

    shapes = read_shapes(base_folder)
    profile = probe_machine(shapes, threads, 0)
    head = shapes.vocab_size * shapes.hidden_size
    layers = shapes.num_parameters - (head if shapes.tied else 2 * head)
    share = sum(sum(row.trained) for row in rows) / sum(len(row.ids) for row in rows)
    operations = 4.0 * (layers + share * head)
    rates = profile.rates_gflops
    return {"rates_gflops": rates, "tokens_per_s": {dtype: 1e9 * rate / operations for dtype, rate in rates.items()}}


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "examples" / "support")
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--rows-like", default="data", choices=tuple(ROWS_PER_STEP))
    parser.add_argument("--rows-per-step", type=int, help="default 8, and 32 for rows like shared-prefix")
    parser.add_argument("--rows", type=int, help="rows used; default as many as the steps take")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--no-grid", action="store_true", help="skip the search: TRL's best is float32, padding-free, no recompute"
    )
    parser.add_argument("--grid-steps", type=int, default=3)
    parser.add_argument("--best-from", type=Path, help="a stored result: take TRL's best setting from its search")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.rows_per_step = args.rows_per_step or ROWS_PER_STEP[args.rows_like]
    return args


def main() -> None:
    """Measures, prints a table, writes the result."""
    args = parse()
    if args.child:
        child_main(args.child)
        return
    sys.path.insert(0, str(ROOT))
    from luthier.bases.resolve import resolve_base

    base = resolve_base(args.base)
    count, share = args.rows or args.rows_per_step * args.steps, args.rows_like == "shared-prefix"
    with tempfile.TemporaryDirectory() as folder:
        if share:
            rows = shared_prefix_rows(base.folder, count)
        else:
            rows = read_rows(args.data, base.folder, Path(folder), count)
        lengths = write_inputs(Path(folder), base.folder, rows)
        common = {"inputs": folder, "base": str(base.folder), "rows_per_step": args.rows_per_step}
        common["share_prefix"] = share
        best = {"dtype": "float32", "recompute": False, "packing": "padding-free", "micro_batch": 8}
        tried: list[dict] = []
        if args.best_from:
            best = json.loads(args.best_from.read_text())["figures"]["trl best"]["setting"]
        elif not args.no_grid:
            print("searching TRL's best setting", flush=True)
            best, tried = find_best(common, lengths, args.threads, args.grid_steps)
        defaults = {key: value for key, value in DEFAULTS.items() if key != "kind"}
        figures = measure({"trl defaults": defaults, "trl best": best}, common, lengths, args)
        bound = roof(base.folder, args.threads, rows)
    report(args, base, lengths, figures, {"grid": tried, "roof": bound})


def report(args: argparse.Namespace, base, lengths: list[int], figures: dict, found: dict) -> None:
    """Prints the table and keeps everything under benchmarks/results/."""
    for name, entry in figures.items():
        print(f"{name}: {label({'kind': 'trl', **entry['setting']})}")
        for who in ("trl", *OUR_DTYPES):
            figure = entry[who]
            name_of_side = who if who == "trl" else f"luthier {who}"
            print(
                f"   {name_of_side:17} {figure['tokens_per_s']:8.1f} tokens/s {figure['ratio_by_s']:6.2f}x "
                f"(by processor time {figure['ratio_by_cpu_s']:.2f}x), {figure['peak_bytes'] / 2**30:.2f} GiB, "
                f"curve {figure['curve_off_float32']:.2%} off float32"
            )
    if args.rows_like == "data":  # with shared prefixes most tokens that the roof counts are not computed
        bound = found["roof"]["tokens_per_s"]["float32"]
        share = figures["trl best"]["float32"]["tokens_per_s"] / bound
        print(f"roof in float32 {bound:.0f} tokens/s, reached {share:.0%}")
    from importlib.metadata import version

    packages = {name: version(name) for name in ("torch", "transformers", "trl", "peft")}
    record = {
        "data": args.data.name if args.rows_like == "data" else args.rows_like, "rows": len(lengths),
        "tokens": sum(lengths), "base": base.name, "digest": base.digest,
        "rows_per_step": args.rows_per_step, "steps": args.steps, "rounds": args.rounds, "threads": args.threads,
        "cpu": platform.processor() or platform.machine(), "packages": packages, "figures": figures, **found,
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"sft_vs_trl-{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"written to {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
