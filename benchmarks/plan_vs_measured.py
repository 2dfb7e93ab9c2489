"""What `luthier plan` predicts against what a run really takes: peak memory and step time, on real short runs.

    python benchmarks/plan_vs_measured.py [--only NAME,...] [--rounds N] [--fit]

Every case is a short training run of the engine in a process of its own (random weights of four architectures, and the
embedded SmolLM2-135M), after the machine has been probed at the base's own shapes. Peak = largest resident memory of
that process; step time = median over the steps after the first, the least of the rounds (the plan is of a machine that
does nothing else). Targets: 10% on memory, 25% on time. --fit fits the constants of luthier/plan/fitted.yaml to these
runs, writes them there, and shows the errors with them: six for memory, five for time, against all runs.
Every record has the cores that other processes took meanwhile: with a tenth of one or more, its time says little.
Full, top-layer and head-only training and LoRA with parts kept whole are measured too, but nothing is fitted to them.
Results: benchmarks/results/plan_vs_measured.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from luthier.config.adapter import AdapterSpec
    from luthier.types import MachineProfile

ROOT = Path(__file__).resolve().parents[1]
RESULT = Path(__file__).resolve().parent / "results" / "plan_vs_measured.json"
MEMORY_TARGET, TIME_TARGET = 0.10, 0.25
MIB = 1 << 20
_SHARED = {"max_position_embeddings": 2048, "rms_norm_eps": 1e-5}
BASES: dict[str, dict[str, Any]] = {
    "llama-512x8": {
        "model_type": "llama", "vocab_size": 16384, "hidden_size": 512, "intermediate_size": 1408,
        "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4, "tie_word_embeddings": True,
    },
    "qwen2-768x8": {
        "model_type": "qwen2", "vocab_size": 32000, "hidden_size": 768, "intermediate_size": 2304,
        "num_hidden_layers": 8, "num_attention_heads": 12, "num_key_value_heads": 4, "tie_word_embeddings": False,
    },
    "gemma2-384x6": {
        "model_type": "gemma2", "vocab_size": 24000, "hidden_size": 384, "intermediate_size": 1536,
        "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 96,
        "query_pre_attn_scalar": 96, "sliding_window": 1024, "tie_word_embeddings": True,
    },
    "phi3-640x10": {
        "model_type": "phi3", "vocab_size": 16000, "hidden_size": 640, "intermediate_size": 1792,
        "num_hidden_layers": 10, "num_attention_heads": 10, "num_key_value_heads": 10, "tie_word_embeddings": False,
    },
}  # fmt: skip
QV = ("q_proj", "v_proj")


@dataclasses.dataclass(frozen=True)
class Case:
    """One run. tokens: budget of a micro-batch, filled by rows of `length` tokens, `share` of which are trained."""

    base: str
    dtype: str = "float32"
    targets: Any = "all-linear"
    rank: int = 16
    tokens: int = 1024
    length: int = 256
    share: float = 0.4
    accumulation: int = 1
    dropout: float = 0.0
    steps: int = 5
    method: str = "lora"
    top_layers: int | None = None
    kept_whole: tuple[str, ...] = ()

    @property
    def adapter(self) -> AdapterSpec:
        """The method, and how it is set."""
        from luthier.config.adapter import AdapterSpec

        if self.method != "lora":
            return AdapterSpec(method=self.method, top_layers=self.top_layers)
        targets = self.targets if isinstance(self.targets, str) else tuple(self.targets)
        return AdapterSpec(
            lora_r=self.rank, lora_target_modules=targets, lora_dropout=self.dropout, modules_to_save=self.kept_whole
        )

    @property
    def name(self) -> str:
        """Base, type, and what sets it apart."""
        targets = self.targets if isinstance(self.targets, str) else "+".join(self.targets)
        what = f"{targets}/r{self.rank}" if self.method == "lora" else f"{self.method}{self.top_layers or ''}"
        marks = [*(f"whole {part}" for part in self.kept_whole), *[f"drop{self.dropout:g}"] * (self.dropout > 0)]
        sizes = f"{self.tokens}x{self.accumulation}/{self.length}/{self.share:g}"
        return "/".join([self.base, self.dtype, what, sizes, *marks])


CASES = (
    Case("smollm2-135m"),
    Case("smollm2-135m", targets=QV, rank=8, tokens=512, length=128, share=0.2),
    Case("smollm2-135m", dtype="bfloat16", tokens=512),
    Case("smollm2-135m", dtype="int8"),
    Case("llama-512x8"),
    Case("llama-512x8", rank=64, tokens=2048, length=512),
    Case("llama-512x8", tokens=256, length=64, accumulation=4),
    Case("llama-512x8", dtype="int8", share=0.9),
    Case("qwen2-768x8"),
    Case("qwen2-768x8", targets=QV, rank=8, tokens=2048, share=0.1),
    Case("qwen2-768x8", dtype="bfloat16"),
    Case("qwen2-768x8", dropout=0.1, share=0.9, tokens=512),
    Case("gemma2-384x6"),
    Case("gemma2-384x6", tokens=2048, length=512, share=0.1),
    Case("phi3-640x10"),
    Case("phi3-640x10", dtype="bfloat16", tokens=2048, length=300),
    Case("smollm2-135m", method="full", tokens=512),
    Case("smollm2-135m", method="head"),
    Case("llama-512x8", method="full"),
    Case("llama-512x8", method="layers", top_layers=2, tokens=2048, length=512),
    Case("llama-512x8", method="head", tokens=2048),
    Case("llama-512x8", kept_whole=("lm_head",)),
    Case("qwen2-768x8", method="full"),
    Case("qwen2-768x8", method="layers", top_layers=3, share=0.9),
    Case("qwen2-768x8", method="head", share=0.9),
    Case("qwen2-768x8", kept_whole=("embed_tokens", "lm_head"), tokens=512),
    Case("gemma2-384x6", method="full"),
    Case("gemma2-384x6", method="head", share=0.2),
    Case("gemma2-384x6", method="layers", top_layers=2),
    Case("phi3-640x10", method="full", tokens=2048, share=0.1),
    Case("phi3-640x10", method="head"),
    Case("phi3-640x10", method="layers", top_layers=4),
    Case("phi3-640x10", kept_whole=("norms", "lm_head")),
)


def make_base(name: str, folder: Path) -> Path:
    """The folder of a base: SmolLM2 as luthier resolves it, else random weights written once below `folder`."""
    import torch
    from safetensors.torch import save_file

    from luthier.bases.resolve import ALIASES, resolve_base
    from luthier.models.decoder import Decoder
    from luthier.models.spec import spec_from_config

    if name in ALIASES:
        return resolve_base(name).folder
    out = folder / name
    if not (out / "config.json").is_file():
        out.mkdir(parents=True)
        config = {**BASES[name], **_SHARED, "dtype": "float32"}
        torch.manual_seed(0)
        model = Decoder(spec_from_config(config), config)
        tensors = {}
        for key, parameter in model.named_parameters():
            tensors[key] = torch.nn.init.normal_(parameter.detach(), 0.0, 0.02)
        save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
        (out / "config.json").write_text(json.dumps(config))
    return out


def child_probe(job: dict) -> dict:
    """The machine at the base's own shapes."""
    from luthier.bases.shapes import read_shapes
    from luthier.models.probe import probe_machine
    from luthier.plan.machines import usable_memory_bytes

    return dataclasses.asdict(probe_machine(read_shapes(Path(job["base"])), job["threads"], usable_memory_bytes()))


def child_train(job: dict) -> dict:
    """One real run; the process starts as `luthier train` does."""
    import luthier.jobs.train  # noqa: F401  what the verb imports belongs to the peak

    before = _resident_bytes()
    import numpy as np
    import torch

    from luthier.adapters.registry import Given, apply_method
    from luthier.config.train import TrainSpec
    from luthier.data.pack import epoch_batches, make_batch
    from luthier.data.stored import EncodedSet
    from luthier.engine.loop import train
    from luthier.kernels.allocator import keep_freed_memory
    from luthier.losses.sft import sft_loss_sum
    from luthier.models.int8 import load_frozen
    from luthier.types import EncodedRow

    case = Case(**job["case"])
    torch.set_num_threads(job["threads"])
    keep_freed_memory()  # as the verb does
    rng, trained = np.random.default_rng(0), round(case.length * case.share)
    mask = (False,) * (case.length - trained) + (True,) * trained
    num_rows = case.steps * case.accumulation * (case.tokens // case.length)
    words = json.loads((Path(job["base"]) / "config.json").read_text())["vocab_size"]
    rows = [EncodedRow(str(i), tuple(rng.integers(0, words, case.length).tolist()), mask) for i in range(num_rows)]
    model = load_frozen(Path(job["base"]), dtype=case.dtype, sample=make_batch(rows[:4]))
    unused = Given(lambda: None, lambda name: model.lm_head.weight, lambda text: [])
    apply_method(model, case.adapter, seed=0, given=unused)
    spec = TrainSpec(
        sequence_len=case.length, micro_batch_tokens=case.tokens, gradient_accumulation_steps=case.accumulation
    )
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as run_dir:
        result = train(
            model, sft_loss_sum, spec, train_set=EncodedSet.of(rows), dev_set=None, make_batch=make_batch,
            plan_epoch=epoch_batches, run_dir=Path(run_dir),
            progress=lambda done, total, **_: ends.append(time.perf_counter()),
        )  # fmt: skip
    steps = [b - a for a, b in itertools.pairwise(ends)]
    return {"before_bytes": before, "peak_bytes": result.peak_bytes, "step_s": statistics.median(steps)}


def _resident_bytes() -> int:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def run_child(job: dict) -> dict:
    """Runs one job in a process of its own and returns what it prints."""
    env = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, __file__, "--child", json.dumps(job)], capture_output=True, text=True, env=env
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.strip().splitlines()[-1])


def predicted(case: Case, base: Path, machine: Any) -> dict[str, Any]:
    """Peak bytes and step seconds as the plan says them, and the terms that --fit fits."""
    from luthier.bases.shapes import read_shapes
    from luthier.plan.activations import ACTIVATION_BYTES, MicroBatch, saved_bytes
    from luthier.plan.memory import predict_memory, widest_output
    from luthier.plan.speed import count_operations, micro_batch_s, rate_of, update_s
    from luthier.plan.trainable import trainable

    shapes, adapter = read_shapes(base), case.adapter
    rows = case.tokens // case.length
    micro = MicroBatch(rows * case.length, rows * round(case.length * case.share), float(case.length))
    memory = predict_memory(shapes, adapter, case.dtype, micro)
    step_s = case.accumulation * micro_batch_s(shapes, adapter, case.dtype, micro, machine)
    step_s += update_s(shapes, adapter, machine)
    count = count_operations(shapes, adapter, case.dtype, micro)
    rate = rate_of(machine, case.dtype)
    float_rate = rate_of(machine, "float32") if case.dtype == "int8" else rate
    head = micro.num_trained * shapes.vocab_size * 4
    saved = saved_bytes(shapes, adapter, case.dtype, micro)
    capped, found = shapes.model_type == "gemma2", trainable(shapes, adapter)
    state = sum(
        line.num_bytes for line in memory.lines if line.name in ("weights", "adapter", "gradients", "optimizer")
    )
    passes = 1.0 if found.lowest < shapes.num_layers else 0.5
    return {
        "peak_bytes": memory.peak_bytes,
        "step_s": step_s,
        "fixed_bytes": state + saved + 2 * found.head * head,
        "is_loading": memory.load_bytes > memory.train_bytes,
        "memory_terms": {
            "lazy_mib": MIB, "head_copies": 0 if capped else head, "capped_head_copies": head if capped else 0,
            "work_copies": passes * micro.num_tokens * widest_output(shapes) * ACTIVATION_BYTES[case.dtype],
            "slack": saved,
        },
        "fixed_s": update_s(shapes, adapter, machine),
        "time_terms": {
            "base": case.accumulation * (count.base / rate + count.head / float_rate),
            "adapter": case.accumulation * count.adapter / float_rate,
            "attention": case.accumulation * count.attention / float_rate,
            "traffic": case.accumulation * count.plain_bytes / (1e9 * machine.bandwidth_gb_s),
            "layer_s": case.accumulation * shapes.num_layers,
        },
    }  # fmt: skip


def measure(case: Case, base: Path, threads: int, rounds: int) -> dict[str, Any]:
    """The least peak and step time of `rounds` runs of one case."""
    job = {"kind": "train", "case": dataclasses.asdict(case), "base": str(base), "threads": threads}
    with OtherWork() as others:
        runs = [run_child(job) for _ in range(rounds)]
    found = {key: min(run[key] for run in runs) for key in ("before_bytes", "peak_bytes", "step_s")}
    return found | {"cores_taken_by_others": others.cores}


class OtherWork:
    """How many cores' worth of time went to other processes, or to the host's other guests, inside the `with`."""

    def __enter__(self) -> OtherWork:
        self._start = self._clocks()
        return self

    def __exit__(self, *_: object) -> None:
        wall, busy, own = (after - before for after, before in zip(self._clocks(), self._start, strict=True))
        self.cores = max(0.0, busy - own) / wall

    @staticmethod
    def _clocks() -> tuple[float, float, float]:
        """Seconds by the clock, of all processes, and of this one with its ended children."""
        machine, own = psutil.cpu_times(), os.times()
        return time.monotonic(), sum(machine) - machine.idle - machine.iowait, sum(own[:4])


def probe(base: Path, threads: int, rounds: int) -> MachineProfile:
    """The best rates of `rounds` probes, as the time is the least of the rounds."""
    from luthier.types import MachineProfile

    job = {"kind": "probe", "base": str(base), "threads": threads}
    found = [MachineProfile(**run_child(job)) for _ in range(rounds)]
    rates = {dtype: max(one.rates_gflops[dtype] for one in found) for dtype in found[0].rates_gflops}
    return dataclasses.replace(found[0], rates_gflops=rates, bandwidth_gb_s=max(one.bandwidth_gb_s for one in found))


def compare(cases: tuple[Case, ...], *, rounds: int, threads: int, work: Path) -> list[dict[str, Any]]:
    """Measures and predicts every case: one record each."""
    records, machines = [], {}
    for case in cases:
        base = make_base(case.base, work)
        if case.base not in machines:
            machines[case.base] = probe(base, threads, rounds)
        found, plan = measure(case, base, threads, rounds), predicted(case, base, machines[case.base])
        record = {"name": case.name, "case": dataclasses.asdict(case), "measured": found, "predicted": plan}
        record["machine"] = dataclasses.asdict(machines[case.base])
        _add_errors(record)
        records.append(record)
        print(_line(record), flush=True)
    return records


def _add_errors(record: dict[str, Any]) -> None:
    found, plan = record["measured"], record["predicted"]
    record["memory_error"] = plan["peak_bytes"] / found["peak_bytes"] - 1
    record["time_error"] = plan["step_s"] / found["step_s"] - 1


def _predict_again(record: dict[str, Any], constants: dict[str, float]) -> None:
    """The same terms with other constants; a peak at loading has none of them but the process."""
    plan = record["predicted"]
    if not plan["is_loading"]:
        terms = plan["memory_terms"].items()
        plan["peak_bytes"] = plan["fixed_bytes"] + constants["process_mib"] * MIB
        plan["peak_bytes"] += sum(constants[name] * term for name, term in terms)
    plan["step_s"] = plan["fixed_s"] + sum(constants[name] * term for name, term in plan["time_terms"].items())
    _add_errors(record)


def _line(record: dict[str, Any]) -> str:
    found, plan = record["measured"], record["predicted"]
    return (
        f"{record['name']:<58} peak {plan['peak_bytes'] / MIB:6.0f} / {found['peak_bytes'] / MIB:6.0f} MiB "
        f"{record['memory_error']:+7.1%}   step {plan['step_s']:6.3f} / {found['step_s']:6.3f} s "
        f"{record['time_error']:+7.1%}   others took {found['cores_taken_by_others']:.2f} cores"
    )


# Bounds keep a constant meaningful where these runs say little about it (long documents, slow memory).
BOUNDS = {
    "lazy_mib": (0, 500), "head_copies": (1, 6), "capped_head_copies": (1, 8), "work_copies": (0, 8), "slack": (0, 1),
    "base": (0.8, 3), "adapter": (1, 8), "attention": (1, 8), "traffic": (0.1, 6), "layer_s": (1e-5, 5e-3),
}  # fmt: skip


def _is_low_rank_alone(case: dict[str, Any]) -> bool:
    return case["method"] == "lora" and not case["kept_whole"]


def fit(records: list[dict[str, Any]]) -> dict[str, float]:
    """Constants by name: least squares of the relative errors, within BOUNDS."""
    import numpy as np
    from scipy.optimize import lsq_linear

    found = {"process_mib": round(statistics.median(r["measured"]["before_bytes"] for r in records) / MIB)}

    def solve(chosen: list[dict[str, Any]], terms: str, target: str, known: Any) -> None:
        names = list(chosen[0]["predicted"][terms])
        truth = np.array([record["measured"][target] for record in chosen])
        matrix = np.array([[record["predicted"][terms][name] for name in names] for record in chosen])
        left = np.array([1 - known(record) / record["measured"][target] for record in chosen])
        scale = np.abs(matrix / truth[:, None]).max(axis=0) + 1e-30
        lows, highs = (np.array([BOUNDS[name][side] for name in names]) * scale for side in (0, 1))
        solved = lsq_linear(matrix / truth[:, None] / scale, left, bounds=(lows, highs + 1e-12)).x / scale
        found.update({name: float(f"{value:.4g}") for name, value in zip(names, solved, strict=True)})

    training = [record for record in records if not record["predicted"]["is_loading"]]
    process = found["process_mib"] * MIB
    solve(training, "memory_terms", "peak_bytes", lambda record: record["predicted"]["fixed_bytes"] + process)
    solve(records, "time_terms", "step_s", lambda record: record["predicted"]["fixed_s"])
    return found


FITTED_FILE = ROOT / "luthier" / "plan" / "fitted.yaml"


def write_fitted(found: dict[str, float], path: Path = FITTED_FILE) -> None:
    """Puts the constants into the cpu block of fitted.yaml, comments kept."""
    head, cuda, tail = path.read_text(encoding="utf-8").partition("\ncuda:")
    for name, value in found.items():
        head = re.sub(rf"(?m)^(  {name}: *)[0-9.e+-]+", rf"\g<1>{value:.6f}", head)
    head = re.sub(r"(?m)^  note: .*", "  note: fitted to benchmarks/results/plan_vs_measured.json", head)
    path.write_text(head + cuda + tail, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="parts of case names, separated by commas")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--child")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if args.child:
        import luthier.cli  # noqa: F401  the variables of the environment that it sets before torch decide on memory

        job = json.loads(args.child)
        print(json.dumps({"probe": child_probe, "train": child_train}[job["kind"]](job)))
        return
    chosen = tuple(c for c in CASES if not args.only or any(part in c.name for part in args.only.split(",")))
    threads = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as work:
        records = compare(chosen, rounds=args.rounds, threads=threads, work=Path(work))
    if args.fit:
        found = fit([record for record in records if _is_low_rank_alone(record["case"])])
        write_fitted(found)
        print("fitted:", json.dumps(found))
        for record in records:
            _predict_again(record, found)
            print(_line(record))
    for kind, target in (("memory", MEMORY_TARGET), ("time", TIME_TARGET)):
        errors = [abs(record[f"{kind}_error"]) for record in records]
        within = sum(error <= target for error in errors)
        figures = f"worst {max(errors):.1%}, median {statistics.median(errors):.1%}"
        print(f"{kind}: {within} of {len(errors)} within {target:.0%}, {figures}")
    if not args.only:
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps({"cases": records}, indent=1) + "\n")


if __name__ == "__main__":
    main()
