"""All that a CUDA machine must prove of the engine, in one command and under nine minutes on one H200.

    python benchmarks/gpu_suite.py [--device cuda|cpu] [--shape 8b|tiny] [--only STAGE,...] [--results FOLDER]

Checks first, on a small random Llama: losses and gradients of packed LoRA on the device, in float32 and bfloat16,
against plain transformers in float32 on the CPU, row by row, with the update merged (gradients by the chain rule, so
nothing of luthier is in the reference); torch's variable-length attention against its twin; QLoRA against the 4-bit
weights written out, and bitsandbytes' kernel against ours; a whole run of the engine against the readable twin
examples/plain_sft.py; decoding; what the engine takes for out of memory. Then speed: LoRA in bfloat16 on a
random Llama-3.1-8B shape, 4,096 packed tokens a step, beside TRL + PEFT on the same rows, with peak memory and the
share of the roof (the device's own rate at a large product; 4 operations a token and weight, the head's included).

Every stage is a process of its own with a time limit: what fails is recorded with its reason and the others go on. A
peer that is not installed is `missing`, and no failure. Exit code 1 when a stage failed. Needs no network. On a CPU
with --shape tiny the whole of it runs too, in the kernels' twins where a kernel needs CUDA. Not yet run on a GPU.
Results: benchmarks/results/gpu_suite-DATE.json.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"
BUDGET_S = 520.0
CHECK_S, SPEED_S = 90.0, 150.0
PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "triton", "numpy")
SMALL = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 512, "hidden_size": 256,
    "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "dtype": "float32",
}  # fmt: skip
LLAMA_8B = {
    **SMALL, "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072, "dtype": "bfloat16",
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}  # fmt: skip
# shape -> config, rows of a step, tokens of a row, timed steps, width of the product that tells the roof
SHAPES = {"8b": (LLAMA_8B, 4, 1024, 6, 8192), "tiny": (SMALL, 4, 64, 3, 512)}
RANK = 16
# Largest relative errors (L2) against float32: of a loss, of all gradients together.
TOLERANCES = {"float32": (2e-5, 1e-3), "bfloat16": (1e-2, 6e-2)}


class Missing(Exception):
    """A stage that cannot be done for want of a package."""


def check(name: str, value: float, limit: float) -> float:
    """value, if it is a number at most `limit`; AssertionError otherwise."""
    if not value <= limit:
        raise AssertionError(f"{name} is {value:.3g}, allowed is {limit:.3g}")
    return value


def need(package: str) -> None:
    """Raises Missing for a package that is not installed."""
    if importlib.util.find_spec(package) is None:
        raise Missing(f"{package} is not installed")


# ---- the small base, its rows, and the reference in plain transformers


def small_base(folder: Path) -> Path:
    """A random base, written by transformers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**SMALL, "initializer_range": 0.08}))
    model.save_pretrained(folder)
    return folder


def small_rows(count: int = 6) -> list[Any]:
    """Rows of different lengths, the later part of each trained."""
    import numpy as np

    from luthier.types import EncodedRow

    rng, rows = np.random.default_rng(0), []
    for i in range(count):
        length = int(rng.integers(9, 40))
        mask = (False,) * (length // 3) + (True,) * (length - length // 3)
        rows.append(EncodedRow(str(i), tuple(rng.integers(0, SMALL["vocab_size"], length).tolist()), mask))
    return rows


def with_updates(model: Any) -> Any:
    """LoRA on every linear layer, B no longer zero, so that every gradient is a number."""
    import torch

    from luthier.adapters.lora import apply_lora
    from luthier.config.adapter import AdapterSpec

    adapted = apply_lora(model, AdapterSpec(lora_r=RANK), seed=0)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in adapted.layers.values():
            layer.lora_B.copy_(torch.randn(layer.lora_B.shape, generator=draw) * 0.02)
    return adapted


def reference(base: Path, updates: dict[str, Any], weights: dict[str, Any], rows: list[Any]) -> tuple[float, dict]:
    """Loss and gradients of the updates by transformers in float32 on the CPU, one row at a time.

    updates: layer -> (A, B, scale); weights: what stands in place of the stored weight of a layer.
    """
    import torch
    import torch.nn.functional as F
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        for name, (a_RI, b_OR, scale) in updates.items():
            weight = model.get_submodule(name).weight
            weight.copy_(weights.get(name, weight) + scale * b_OR @ a_RI)
    total = 0.0
    num_trained = sum(sum(row.trained[1:]) for row in rows)
    for row in rows:
        logits = model(input_ids=torch.tensor([row.ids]), use_cache=False).logits[0, :-1]
        losses = F.cross_entropy(logits, torch.tensor(row.ids[1:]), reduction="none")
        loss = losses[torch.tensor(row.trained[1:])].sum() / num_trained
        loss.backward()
        total += loss.item()
    gradients = {}
    for name, (a_RI, b_OR, scale) in updates.items():
        dw = model.get_submodule(name).weight.grad
        gradients[f"{name}.lora_A"], gradients[f"{name}.lora_B"] = scale * b_OR.t() @ dw, scale * dw @ a_RI.t()
    return total, gradients


def losses_and_gradients(model: Any, base: Path, device: Any, weights: dict[str, Any], dtype: str) -> dict[str, Any]:
    """One packed backward pass of the engine on `device` against the reference."""
    import torch

    from luthier.data.pack import make_batch
    from luthier.engine.inputs import to_device
    from luthier.engine.step import backward_of
    from luthier.losses.sft import sft_loss_sum

    adapted, rows = with_updates(model), small_rows()
    batch = to_device(make_batch(rows), device)
    model.train()
    sums = backward_of(model, sft_loss_sum, batch, batch.num_trained)
    loss = sums.total.item() / batch.num_trained
    places = {str(p.device.type) for p in model.parameters()}
    assert places == {device.type}, f"weights are on {places}"
    updates = {n: (x.lora_A.detach().cpu(), x.lora_B.detach().cpu(), x.scale) for n, x in adapted.layers.items()}
    expected, wanted = reference(base, updates, weights, rows)
    found = {name: p.grad.float().cpu() for name, p in model.named_parameters() if p.requires_grad}
    assert found.keys() == wanted.keys() and all(float(g.norm()) > 0 for g in found.values())
    off = torch.stack([(found[name] - wanted[name]).norm() for name in found]).norm()
    whole = torch.stack([wanted[name].norm() for name in found]).norm()
    allowed_loss, allowed_gradient = TOLERANCES[dtype]
    return {
        "loss": loss, "reference_loss": expected, "tokens": len(batch.ids_T), "documents": len(rows),
        "loss_error": check("the loss's relative error", abs(loss / expected - 1), allowed_loss),
        "gradient_error": check("the gradients' relative error", float(off / whole), allowed_gradient),
    }  # fmt: skip


# ---- stages: (device, shape) -> figures


def parity(dtype: str) -> Callable[[Any, str], dict[str, Any]]:
    """LoRA on a base in `dtype`; the reference has the weights as that type rounds them."""

    def stage(device: Any, shape: str) -> dict[str, Any]:
        import torch

        from luthier.models.load import load_model

        with tempfile.TemporaryDirectory() as folder:
            base = small_base(Path(folder))
            model = load_model(base, dtype=dtype, device=device)
            weights = {name: x.weight.detach().float().cpu() for name, x in model.linear_modules().items()}
            torch.backends.cuda.matmul.allow_tf32 = False
            return losses_and_gradients(model, base, device, weights, dtype)

    return stage


def qlora(device: Any, shape: str) -> dict[str, Any]:
    """A 4-bit base; the reference has its weights written out."""
    import torch

    from luthier.models.int8 import to_nf4
    from luthier.models.load import load_model

    figures: dict[str, Any] = {}
    for dtype in ("float32", "bfloat16"):
        with tempfile.TemporaryDirectory() as folder:
            base = small_base(Path(folder))
            model = load_model(base)
            assert to_nf4(model, device=device, compute=getattr(torch, dtype))
            layers = {n: x for n, x in model.linear_modules().items() if n != "lm_head"}
            weights = {name: layer.frozen().dequantised().cpu() for name, layer in layers.items()}
            weights["lm_head"] = model.lm_head.weight.detach().float().cpu()
            figures[dtype] = losses_and_gradients(model, base, device, weights, dtype)
    return figures


def bitsandbytes(device: Any, shape: str) -> dict[str, Any]:
    """Its kernel and ours write the same 4-bit weights out; its own rounding is as far from the weights as ours."""
    need("bitsandbytes")
    import torch

    from luthier.kernels.nf4 import Nf4Weight, written_by_bitsandbytes
    from luthier.kernels.nf4 import bitsandbytes as library

    weight = torch.randn(256, 512, generator=torch.Generator().manual_seed(0))
    kept, cpu = Nf4Weight(weight.to(device)), Nf4Weight(weight)
    figures: dict[str, Any] = {}
    for dtype in (torch.float32, torch.bfloat16):
        theirs = written_by_bitsandbytes(kept.held, kept.scales(), dtype).float().cpu()
        ours = cpu.dequantised(dtype).float()
        name = str(dtype).removeprefix("torch.")
        figures[name] = check(f"written out in {name}", float((theirs - ours).norm() / ours.norm()), 1e-6)
    tools: Any = library()
    packed, state = tools.functional.quantize_4bit(weight.to(device), blocksize=64, quant_type="nf4")
    theirs = tools.functional.dequantize_4bit(packed, state).cpu()
    errors = [float((x - weight).norm() / weight.norm()) for x in (theirs, cpu.dequantised())]
    figures["their_rounding"], figures["our_rounding"] = errors
    check("our rounding over theirs", errors[1] / errors[0], 1.02)  # ours has its scales quantised too
    return figures


def varlen(device: Any, shape: str) -> dict[str, Any]:
    """Attention of a pack in bfloat16, values and gradients, against float32; and no document sees another."""
    import torch

    from luthier.kernels.varlen import can_attend_packed, plain_varlen
    from luthier.models.attention import PackedAttention, plan_pack

    bounds, keep, draw = [0, 5, 70, 71, 200], [3, 4, 69, 150, 199], torch.Generator().manual_seed(0)
    figures: dict[str, Any] = {}
    for name, window, kept in (("all", None, None), ("window", 16, None), ("pruned", None, keep)):
        keep_K = torch.arange(bounds[-1]) if kept is None else torch.tensor(kept)
        plan = plan_pack(torch.tensor(bounds), keep_K.to(device))
        attend, wide = (PackedAttention(plan, (window,), 0.125) for _ in range(2))
        heads = [torch.randn(n, h, 64, generator=draw).to(device) for n, h in ((len(keep_K), 8), (200, 2), (200, 2))]
        half = [x.bfloat16().requires_grad_() for x in heads]
        exact = [x.detach().float().requires_grad_() for x in half]
        native = can_attend_packed(half[0])
        kernel = None if native else (plain_varlen, True)
        got, wanted = attend.by_varlen(0, *half, kernel=kernel), wide(0, *exact)
        weigh = torch.randn(got.shape, generator=draw).to(device)
        (got.float() * weigh).sum().backward()
        (wanted * weigh).sum().backward()
        pairs = [(got, wanted), *((a.grad, b.grad) for a, b in zip(half, exact, strict=True))]
        errors = [float((a.detach().float() - b).norm() / b.norm()) for a, b in pairs]
        figures[name] = check(f"{name}: relative error", max(errors), 2e-2)
        other = [x.detach().clone() for x in half]
        other[1][:70] = other[2][:70] = 7.0  # two documents' keys and values
        moved = attend.by_varlen(0, *other, kernel=kernel)
        later = keep_K >= 70
        assert torch.equal(moved[later.to(device)], got.detach()[later.to(device)]), f"{name}: documents see each other"
    return figures | {"kernel": "torch" if native else "its twin: torch's own needs CUDA"}


def engine(device: Any, shape: str) -> dict[str, Any]:
    """A whole run of the loop in float32 (accumulation, rehearsal, checkpoints, dev losses) against the readable twin
    on the CPU; then gone on with from its checkpoint."""
    import torch

    from luthier.adapters.lora import apply_lora
    from luthier.config.adapter import AdapterSpec
    from luthier.config.train import TrainSpec
    from luthier.data.pack import epoch_batches, make_batch
    from luthier.data.stored import EncodedSet
    from luthier.engine.inputs import StepPlan
    from luthier.engine.loop import train
    from luthier.losses.sft import sft_loss_sum
    from luthier.models.load import load_model

    sys.path.insert(0, str(ROOT / "examples"))
    import plain_sft

    rows = small_rows(24)
    spec = TrainSpec(sequence_len=64, micro_batch_tokens=96, gradient_accumulation_steps=2, num_epochs=2, save_steps=3)
    with tempfile.TemporaryDirectory() as folder:
        base = small_base(Path(folder) / "base")
        models = [load_model(base, device=place) for place in (device, torch.device("cpu"))]
        for model in models:
            apply_lora(model, AdapterSpec(lora_r=RANK, lora_dropout=0.0), seed=0)
        about = {"train_set": EncodedSet.of(rows), "dev_set": EncodedSet.of(rows[:4]), "make_batch": make_batch}
        about |= {"plan_epoch": epoch_batches, "run_dir": Path(folder) / "run"}
        result = train(models[0], sft_loss_sum, spec, **about)
        steps = list(StepPlan(EncodedSet.of(rows), epoch_batches, spec).steps_from(0, 0))
        batches = [[plain_sft.collate([rows[i] for i in micro]) for micro in step.micro_batches] for step in steps]
        expected = plain_sft.plain_sft(models[1], batches, spec)
        lines = map(json.loads, (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines())
        losses = [line["loss"] for line in lines if line["kind"] == "train"]
        assert len(losses) == len(expected), f"{len(losses)} steps were logged, {len(expected)} planned"
        again = train(models[0], sft_loss_sum, spec, **about)  # nothing is left to do: it reads what it wrote
    off = max(abs(a / b - 1) for a, b in zip(losses, expected, strict=True))
    assert again.best_metric == result.best_metric, "another dev loss after the resume"
    return {
        "steps": len(losses), "loss_error": check("the largest relative error of a step's loss", off, 1e-3),
        "dev_loss": result.best_metric, "rehearsed_bytes": result.rehearsal.peak_bytes if result.rehearsal else None,
        "peak_bytes": result.peak_bytes,
    }  # fmt: skip


def decoding(device: Any, shape: str) -> dict[str, Any]:
    """Greedy answers in slots with caches, on the device: logits of every step against transformers' on the CPU."""
    import torch
    from transformers import AutoModelForCausalLM

    from luthier.models.load import load_model

    with tempfile.TemporaryDirectory() as folder:
        base = small_base(Path(folder))
        model = load_model(base, device=device).eval()
        plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        rows = [list(row.ids[:7]) for row in small_rows(3)]
        session = model.session(num_slots=3, capacity=32, prefix=(), length_class=0)
        logits, worst = session.fill([0, 1, 2], rows), 0.0
        for _ in range(8):
            with torch.no_grad():
                wanted = torch.stack([plain(input_ids=torch.tensor([row])).logits[0, -1] for row in rows])
            worst = max(worst, float((logits.cpu() - wanted).norm() / wanted.norm()))
            tokens = wanted.argmax(-1).tolist()
            rows = [[*row, token] for row, token in zip(rows, tokens, strict=True)]
            logits = session.step(tokens)
    return {"logit_error": check("the logits' relative error", worst, 1e-3)}


def out_of_memory(device: Any, shape: str) -> dict[str, Any]:
    """A failed allocation is taken for what it is, and a window that does not fit is split with the same loss."""
    import torch

    from luthier.data.pack import make_batch
    from luthier.engine.inputs import batches_of
    from luthier.engine.memory import available_bytes, is_out_of_memory

    left = available_bytes(device)
    assert left and left > 0, "nobody says how much memory is left"
    try:
        torch.empty(1 << 48, dtype=torch.uint8, device=device)
    except (RuntimeError, MemoryError) as error:
        kind = type(error).__name__
        assert is_out_of_memory(error), f"not taken for out of memory: {error}"
    else:
        raise AssertionError("256 TiB were allocated")
    rows = small_rows()
    pieces = batches_of(rows, [range(len(rows))], make_batch, device, max_tokens=60)
    assert len(pieces) > 1 and sum(piece.num_trained for piece in pieces) == make_batch(rows).num_trained
    return {"error": kind, "left_bytes": left, "pieces": len(pieces)}


# ---- speed


def speed_rows(shape: str) -> tuple[dict[str, Any], list[list[int]]]:
    """The shape's config and the rows of every step, all of whose tokens are trained."""
    import numpy as np

    config, num_rows, length, _, _ = SHAPES[shape]
    rng = np.random.default_rng(0)
    return config, rng.integers(0, config["vocab_size"], (num_rows, length)).tolist()


def roof_flops(device: Any, shape: str) -> float:
    """Operations a second of one large bfloat16 product, the best of ten."""
    import torch

    width = SHAPES[shape][-1]
    left, right = (torch.randn(width, width, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = min(timed(lambda: left @ right, device) for _ in range(10))
    return 2.0 * width**3 / best


def timed(work: Callable[[], Any], device: Any) -> float:
    """Seconds of `work`, to its end on the device."""
    import torch

    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    began = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - began


def speed_luthier(device: Any, shape: str) -> dict[str, Any]:
    """The engine's own step on a random base: weights are made where they stay."""
    import torch

    from luthier.adapters.lora import apply_lora
    from luthier.config.adapter import AdapterSpec
    from luthier.config.train import TrainSpec
    from luthier.data.pack import make_batch
    from luthier.engine.inputs import to_device
    from luthier.engine.memory import PeakMemory
    from luthier.engine.optimizers import make_adamw
    from luthier.engine.step import train_step
    from luthier.kernels.projection import stack_layers
    from luthier.losses.sft import sft_loss_sum
    from luthier.models.decoder import Decoder
    from luthier.models.spec import spec_from_config
    from luthier.types import EncodedRow

    flops, peak = roof_flops(device, shape), PeakMemory(device)
    config, ids = speed_rows(shape)
    peak.start()
    with torch.device("meta"):
        model = Decoder(spec_from_config(config), config).to(torch.bfloat16)
    model = model.to_empty(device=device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0) if "norm" in name else parameter.normal_(0.0, 0.02)
    for group in model.projection_groups():
        if len(group) > 1:
            stack_layers(group)  # type: ignore[arg-type]
    apply_lora(model, AdapterSpec(lora_r=RANK), seed=0)
    model.train()
    rows = [EncodedRow(str(i), tuple(row), (True,) * len(row)) for i, row in enumerate(ids)]
    batch, spec = to_device(make_batch(rows), device), TrainSpec()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, losses, took = make_adamw([{"params": parameters}], spec), [], []

    def step() -> None:
        figures = train_step(
            model, sft_loss_sum, parameters, optimizer, [batch], step=1, learning_rate=2e-4, spec=spec,
            spike_in=lambda *_: "", between=lambda: None, before_update=lambda: None, squares=None,
        )  # fmt: skip
        losses.append(figures.loss)

    took = [timed(step, device) for _ in range(SHAPES[shape][3] + 1)][1:]
    assert losses[-1] < losses[0], f"the loss does not fall on the same rows: {losses}"
    return speed_figures(took, losses, peak.peak_bytes, model.num_parameters, config) | {"roof_flops": flops}


def speed_trl(recompute: bool) -> Callable[[Any, str], dict[str, Any]]:
    """TRL's SFTTrainer with PEFT's LoRA on the same rows, all in one micro-batch; no row is padded."""

    def stage(device: Any, shape: str) -> dict[str, Any]:
        for package in ("trl", "peft", "datasets"):
            need(package)
        import torch
        from datasets import Dataset
        from peft import LoraConfig
        from tokenizers import Tokenizer, models
        from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, TrainerCallback
        from trl import SFTConfig, SFTTrainer

        from luthier.engine.memory import PeakMemory

        config, rows = speed_rows(shape)
        peak, ends, num_steps = PeakMemory(device), [], SHAPES[shape][3] + 1
        peak.start()
        with torch.device(device):
            model: Any = AutoModelForCausalLM.from_config(LlamaConfig(**config), dtype=torch.bfloat16)

        class Timer(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                ends.append(time.perf_counter() + timed(lambda: None, device))

        words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>"))
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
        with tempfile.TemporaryDirectory() as out:
            options = SFTConfig(
                output_dir=out, report_to="none", use_cpu=device.type == "cpu", seed=0, logging_steps=1,
                save_strategy="no", max_steps=num_steps, learning_rate=2e-4, lr_scheduler_type="constant",
                per_device_train_batch_size=len(rows), bf16=True, gradient_checkpointing=recompute, max_length=None,
                disable_tqdm=True, dataset_kwargs={"skip_prepare_dataset": True},
            )  # fmt: skip
            lora = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
            data = Dataset.from_list([{"input_ids": row} for row in rows] * num_steps)
            trainer = SFTTrainer(
                model=model, args=options, train_dataset=data, callbacks=[Timer()], processing_class=tokenizer,
                peft_config=lora,
            )  # fmt: skip
            trainer.train()
        losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
        took = [b - a for a, b in itertools.pairwise(ends)]
        count = sum(p.numel() for p in trainer.model.parameters())
        return speed_figures(took, losses, peak.peak_bytes, count, config)

    return stage


def speed_figures(
    took: list[float], losses: list[float], peak_bytes: int, num_parameters: int, config: dict[str, Any]
) -> dict[str, Any]:
    """Tokens a second of the middle step, and the operations that its frozen weights cost: 4 a token and weight."""
    _, num_rows, length, _, _ = next(shape for shape in SHAPES.values() if shape[0] is config)
    step_s = sorted(took)[len(took) // 2]
    products = num_parameters - config["vocab_size"] * config["hidden_size"]  # an embedding is looked up
    return {
        "tokens_per_s": num_rows * length / step_s, "step_s": step_s, "all_s": took, "losses": losses,
        "peak_bytes": peak_bytes, "flops": 4.0 * products * num_rows * length / step_s,
    }  # fmt: skip


STAGES: dict[str, tuple[float, Callable[[Any, str], dict[str, Any]]]] = {
    "float32": (CHECK_S, parity("float32")),
    "bfloat16": (CHECK_S, parity("bfloat16")),
    "varlen": (CHECK_S, varlen),
    "qlora": (CHECK_S, qlora),
    "bitsandbytes": (CHECK_S, bitsandbytes),
    "engine": (CHECK_S, engine),
    "decoding": (CHECK_S, decoding),
    "out_of_memory": (CHECK_S, out_of_memory),
    "speed_luthier": (SPEED_S, speed_luthier),
    "speed_trl": (SPEED_S, speed_trl(recompute=False)),
    "speed_trl_defaults": (SPEED_S, speed_trl(recompute=True)),
}


def child(name: str, device_name: str, shape: str, out: Path) -> None:
    """One stage; writes what it found, or why not."""
    import luthier.cli  # noqa: F401  what the command line sets before torch is imported

    try:
        import torch

        found = {"status": "passed", "figures": STAGES[name][1](torch.device(device_name), shape)}
    except Missing as missing:
        found = {"status": "missing", "why": str(missing)}
    except Exception as error:  # whatever it is, it is this stage's result
        import traceback

        place = traceback.extract_tb(error.__traceback__)[-1]
        why = f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"
        found = {"status": "failed", "why": why[:2000]}
    out.write_text(json.dumps(found))


def run_stage(name: str, device: str, shape: str, limit_s: float) -> dict[str, Any]:
    """A stage in a process of its own; one that dies or takes too long has failed."""
    if limit_s <= 0:
        return {"status": "failed", "why": "the suite's time was used up before it", "took_s": 0.0}
    began = time.monotonic()
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        command = [sys.executable, __file__, "--stage", name, "--device", device, "--shape", shape, "--out", str(out)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=limit_s)
            why = f"it ended with {done.returncode}: {done.stderr[-1500:]}"
        except subprocess.TimeoutExpired:
            why = f"it took more than {limit_s:.0f} s"
        found = json.loads(out.read_text()) if out.exists() else {"status": "failed", "why": why}
    return found | {"took_s": round(time.monotonic() - began, 1)}


def share_of_roof(stages: dict[str, Any]) -> None:
    """Beside every speed, its share of the roof that luthier's stage measured, and the ratio to TRL's."""
    speeds = {
        name: found["figures"] for name, found in stages.items() if name.startswith("speed") and "figures" in found
    }
    ours = speeds.get("speed_luthier")
    for figures in speeds.values():
        if ours:
            figures["share_of_roof"] = figures["flops"] / ours["roof_flops"]
            figures["luthier_is_times"] = ours["tokens_per_s"] / figures["tokens_per_s"]


def told(name: str, found: dict[str, Any]) -> str:
    """One line of a stage."""
    figures = found.get("figures", {})
    nested = {f"{k} {name}": v for k, inner in figures.items() if isinstance(inner, dict) for name, v in inner.items()}
    shown = [f"{k} {v:.3g}" for k, v in (figures | nested).items() if isinstance(v, float)]
    words = [f"{k} {v}" for k, v in figures.items() if isinstance(v, str)]
    return f"{found['status']:8} {name:20} {found['took_s']:6.1f} s  {found.get('why') or ', '.join(shown + words)}"


def versions() -> dict[str, str | None]:
    """Of everything that takes part; None = not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        found[name] = importlib.metadata.version(name) if importlib.util.find_spec(name) else None
    return found


def machine_of(device: str) -> dict[str, Any]:
    """What the device is, in a process of its own: this one never opens it."""
    code = "import torch; print(torch.cuda.get_device_name(0), torch.version.cuda, sep='|')"
    if device == "cpu":
        return {"device": "cpu", "processor": platform.processor() or platform.machine()}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return {"device": device, "name_and_cuda": done.stdout.strip() or f"none: {done.stderr[-300:]}"}


def main() -> int:
    """Runs the stages, prints a line for each, writes the record. 1 when one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--shape", default=None, choices=tuple(SHAPES), help="default: 8b on a GPU, tiny on a CPU")
    parser.add_argument("--only", default="", help="stages, separated by commas")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--stage", choices=tuple(STAGES), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    shape = args.shape or ("8b" if args.device == "cuda" else "tiny")
    if args.stage:
        child(args.stage, args.device, shape, args.out)
        return 0
    chosen = args.only.split(",") if args.only else list(STAGES)
    if unknown := sorted(set(chosen) - STAGES.keys()):
        parser.error(f"--only: no stage {', '.join(unknown)}; there are {', '.join(STAGES)}")
    began, stages = time.monotonic(), {}
    for name in chosen:
        left_s = BUDGET_S - (time.monotonic() - began)
        stages[name] = run_stage(name, args.device, shape, min(STAGES[name][0], left_s))
        share_of_roof(stages)
        print(told(name, stages[name]), flush=True)
    failed = [name for name, found in stages.items() if found["status"] == "failed"]
    record = {
        "date": time.strftime("%Y-%m-%d %H:%M:%S"), "machine": machine_of(args.device), "shape": shape,
        "versions": versions(), "took_s": round(time.monotonic() - began, 1), "failed": failed, "stages": stages,
    }  # fmt: skip
    args.results.mkdir(parents=True, exist_ok=True)
    path = args.results / f"gpu_suite-{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"{len(stages) - len(failed)} of {len(stages)} without a failure; written to {path.name}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
