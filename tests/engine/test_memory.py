"""Out of memory: the same window in smaller micro-batches with the same gradients; and what the kernel tells."""

import json
import subprocess
import sys
from mmap import mmap
from pathlib import Path

import pytest
import torch

from luthier.engine.evaluation import dev_figures
from luthier.engine.inputs import batches_of
from luthier.engine.loop import train
from luthier.engine.memory import PeakMemory, available_bytes, held_bytes, is_out_of_memory
from luthier.engine.optimizers import make_adamw
from luthier.engine.param_groups import parameter_groups
from luthier.errors import Interrupted, TrainError
from luthier.losses.sft import sft_loss_sum
from tests.engine.small import make_batch, plan_epoch, rows, run, same, small_model, spec_of, weights_of

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
# What torch 2.13 says on a CPU when malloc fails (taken from a process under RLIMIT_AS).
REFUSAL = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "1179648 bytes. Error code 12 (Cannot allocate memory)"
)


class Full:
    """A machine that cannot hold more than `room` tokens at once: raises what torch raises, in the middle of the
    backward pass, when the gradients of the last layer have already been added.
    """

    def __init__(self, model, room: int, error: Exception) -> None:
        self.room, self.error, self.sizes = room, error, []
        model.model.register_forward_pre_hook(self.forward, with_kwargs=True)
        model.model.layers[0].register_forward_hook(self.between)

    def forward(self, module, args, kwargs):
        self.sizes.append(kwargs["input_ids"].numel())

    def between(self, module, args, hidden):
        if self.sizes[-1] > self.room and hidden.requires_grad:
            hidden.register_hook(self.refuse)

    def refuse(self, gradient):
        raise self.error


def _one_window(tmp_path, name, error=None, room=0, **changes):
    """One window of three micro-batches; B is not zero, so that every gradient is there."""
    model = small_model()
    torch.manual_seed(2)
    for key, p in model.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(p, std=0.1)
    full = None if error is None else Full(model, room, error)
    spec = spec_of(gradient_accumulation_steps=3, max_steps=1, max_grad_norm=None)
    result = run(model, spec, tmp_path / name, dev_set=None, **changes)
    return {key: p.grad for key, p in model.named_parameters() if p.requires_grad}, full, result


@pytest.mark.parametrize("rehearse", [False, True])
@pytest.mark.parametrize("error", [MemoryError(), RuntimeError(REFUSAL), torch.OutOfMemoryError("CUDA out of memory.")])
def test_a_split_window_has_the_gradients_of_the_whole_one(tmp_path, error, rehearse, caplog):
    """The second and third micro-batch fail after the first one's gradients are there: nothing is counted twice."""
    planned = sorted(plan_epoch(rows(24), 40, 0, 0)[:3], key=lambda micro: sum(len(rows(24)[i].ids) for i in micro))
    sizes = [len(batch.ids_T) for batch in batches_of(rows(24), planned, make_batch, CPU)]
    room = sizes[0]
    assert room < sizes[1] and room < sizes[2]
    expected, _, whole = _one_window(tmp_path, "whole", rehearse=False, plan_epoch=lambda *_: planned)
    got, full, split = _one_window(tmp_path, "split", error, room, rehearse=rehearse, plan_epoch=lambda *_: planned)
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    assert (split.tokens, split.trained_tokens, split.steps) == (whole.tokens, whole.trained_tokens, 1)
    assert whole.max_tokens is None and split.max_tokens is not None and split.waste.recompute_s > 0
    records = [json.loads(line) for line in (tmp_path / "split" / "metrics.jsonl").read_text().splitlines()]
    lowered = [record for record in records if record["kind"] == "split"]
    assert lowered and lowered[-1]["max_tokens"] == lowered[-1]["num_tokens"] * 3 // 4
    if rehearse:
        assert split.rehearsal is not None and split.max_tokens == split.rehearsal.num_tokens <= room
    else:
        assert split.max_tokens == lowered[-1]["max_tokens"]
    assert len([r for r in caplog.records if "split by rows; the result is the same" in r.message]) == len(lowered)
    assert full is not None and max(full.sizes[-3:]) <= room


def test_the_split_is_remembered_and_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    """It fails once; later windows of that size start split. Stopped and resumed with dropout: bit for bit the same."""
    spec, results, seen = spec_of(save_steps=2), {}, []
    for name in ("whole", "cut"):
        model = small_model(dropout=0.2)
        full = Full(model, 25, MemoryError())
        if name == "cut":
            with pytest.raises(Interrupted):
                run(
                    model, spec, tmp_path / name, stop=lambda: seen[-1:] == [4], rehearse=False,
                    progress=lambda done, total, **figures: seen.append(done),
                )  # fmt: skip
            model = small_model(dropout=0.2, adapter_seed=5)
            full = Full(model, 25, MemoryError())
        results[name] = (run(model, spec, tmp_path / name, rehearse=False), weights_of(model), full)
    assert same(results["whole"][1], results["cut"][1])
    assert results["whole"][0].history == results["cut"][0].history
    sizes = results["whole"][2].sizes
    failures = [place for place, size in enumerate(sizes) if size > 25]
    first_half = [place for place in failures if place < len(sizes) // 2]
    assert 1 <= len(failures) <= 6 and failures == first_half, "each size fails at most once"


def test_dev_batches_are_split_too(tmp_path):
    """The same dev loss from pieces; an evaluation that runs out of memory is done again, split."""
    model, dev = small_model(), rows(8, seed=9)
    whole = dev_figures(model, sft_loss_sum, dev, [range(8)], make_batch, CPU, lambda: False)["loss"]
    pieces = dev_figures(model, sft_loss_sum, dev, [range(8)], make_batch, CPU, lambda: False, 30)["loss"]
    assert pieces == pytest.approx(whole, rel=1e-6)
    calls = []

    def loss(logits_KV, targets_K):
        calls.append(len(targets_K))
        if not torch.is_grad_enabled() and len(targets_K) > 20:
            raise MemoryError
        return sft_loss_sum(logits_KV, targets_K)

    handed = {
        "train_set": rows(24), "dev_set": dev, "make_batch": make_batch, "rehearse": False,
        "plan_epoch": lambda some, *_: [range(8)] if some is dev else plan_epoch(some, 40, 0, 0),
    }  # fmt: skip
    split = train(small_model(), loss, spec_of(max_steps=2), run_dir=tmp_path / "a", **handed)
    plain = train(small_model(), sft_loss_sum, spec_of(max_steps=2), run_dir=tmp_path / "b", **handed)
    assert split.history[0]["loss"] == pytest.approx(plain.history[0]["loss"], rel=1e-6) and split.max_tokens


def test_pieces_keep_rows_order_and_limit():
    """Every row once, in order, no row cut; a row above the limit stands alone."""
    chosen = rows(12, seed=3)
    for limit in (10, 25, 40, 1000):
        batches = batches_of(chosen, [range(7), range(7, 12)], make_batch, CPU, limit)
        assert [i for batch in batches for i in batch.row_ids] == [row.row_id for row in chosen]
        assert all(len(batch.ids_T) <= limit or len(batch.row_ids) == 1 for batch in batches)
    assert len(batches_of(chosen, [range(12)], make_batch, CPU, 1)) == 12


def test_what_cannot_be_split_is_an_error_with_the_next_move(tmp_path):
    """A single row by its name and size; the optimizer's state; and an error of another kind stays itself."""
    model = small_model()
    full = Full(model, 3, RuntimeError(REFUSAL))
    with pytest.raises(TrainError, match=r"row row-\d+ does not fit by itself: a micro-batch of \d+ tokens") as error:
        run(model, spec_of(), tmp_path / "a", dev_set=None)
    assert "train.sequence_len below" in error.value.hint and full.sizes
    model = small_model()
    Full(model, 3, RuntimeError("shapes do not fit"))
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        run(model, spec_of(), tmp_path / "b", dev_set=None)


def test_which_errors_count():
    """torch's, Python's and C++'s; nothing else."""
    for error in (MemoryError(), RuntimeError(REFUSAL), torch.OutOfMemoryError("x"), RuntimeError("std::bad_alloc")):
        assert is_out_of_memory(error)
    assert is_out_of_memory(RuntimeError("could not create a primitive\n"))
    unsupported = RuntimeError("could not create a primitive descriptor for a matmul")
    for other in (
        RuntimeError("size mismatch"),
        unsupported,
        ValueError("can't allocate memory"),
        KeyError("out of memory"),
    ):
        assert not is_out_of_memory(other)


CHILD = """
import json, resource, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from luthier.types import EncodedRow
from tests.engine.small import run, small_model, spec_of
chosen = [EncodedRow(f"r{i}", tuple((i + j) % 90 for j in range(256)), (False,) + (True,) * 255) for i in range(8)]
spec = spec_of(max_steps=1, sequence_len=256, micro_batch_tokens=2048, max_grad_norm=None)
def once(name, plan=(range(8),)):
    model = small_model()
    handed = {"train_set": chosen, "dev_set": None, "plan_epoch": lambda *_: plan, "rehearse": False}
    result = run(model, spec, Path(sys.argv[1]) / name, **handed)
    gradients = [p.grad for n, p in model.named_parameters() if n.endswith("lora_B")]
    return result, gradients
once("halves", (range(4), range(4, 8)))  # oneDNN compiles a kernel per shape, which takes memory of its own
free, expected = once("free")
held = [int(x.split()[1]) * 1024 for x in open("/proc/self/status") if x.startswith("VmSize:")][0]
resource.setrlimit(resource.RLIMIT_AS, (held + (int(sys.argv[2]) << 20), -1))
tight, got = once("tight")
worst = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(got, expected, strict=True))
print(json.dumps({"free": free.max_tokens, "tight": tight.max_tokens, "worst": worst, "tokens": tight.tokens}))
"""


def test_a_process_that_may_not_grow_splits_and_ends(tmp_path):
    """No injected error: the kernel refuses the memory (RLIMIT_AS), torch says so, the step is done in pieces."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path), "30"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["free"] is None and seen["tight"] is not None and seen["tokens"] == 2048
    assert seen["worst"] < 1e-4 and "split by rows" in done.stderr


def test_memory_that_is_left_is_the_tightest_of_machine_and_control_groups(tmp_path):
    """cgroup v2 (own group and its parents, "max" = no limit), v1, and MemAvailable."""

    def write(path, text):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    assert available_bytes(CPU, root=tmp_path) is None
    write("proc/meminfo", "MemTotal: 9000 kB\nMemAvailable:    5000 kB\n")
    assert available_bytes(CPU, root=tmp_path) == 5000 * 1024
    write("proc/self/cgroup", "0::/a/b\n")
    for level, limit in (("", "max"), ("a/", "3000000"), ("a/b/", "max")):
        write(f"sys/fs/cgroup/{level}memory.max", limit)
        write(f"sys/fs/cgroup/{level}memory.current", "1000000\n")
        write(f"sys/fs/cgroup/{level}memory.stat", "anon 5\ninactive_file 400000\n")
    assert available_bytes(CPU, root=tmp_path) == 2_400_000
    write("proc/self/cgroup", "5:cpu:/x\n4:hugetlb,memory:/job\n0::/\n")
    for level, limit in (("", "9223372036854771712"), ("job/", "1500000")):
        write(f"sys/fs/cgroup/memory/{level}memory.limit_in_bytes", limit)
        write(f"sys/fs/cgroup/memory/{level}memory.usage_in_bytes", "1000000")
        write(f"sys/fs/cgroup/memory/{level}memory.stat", "inactive_file 9\ntotal_inactive_file 100000\n")
    assert available_bytes(CPU, root=tmp_path) == 600_000
    assert available_bytes(CPU) > 10_000_000, "this machine tells"


def test_peak_is_that_of_the_interval_where_the_kernel_allows_it():
    """Fresh pages (mmap: the allocator may hand out what it kept) after `start` show; the overall peak never falls."""
    peak = PeakMemory(CPU)
    with mmap(-1, 30 << 20) as block:
        block.write(b"x" * len(block))
        peak.start()
        overall = peak.overall_bytes
    peak.start()
    with mmap(-1, 60 << 20) as block:
        block.write(b"x" * len(block))
    assert peak.peak_bytes - peak.start_bytes >= 50 << 20 and peak.overall_bytes >= overall


KEEPING = """
import json, os, torch
from luthier.engine.memory import KeptMemory
from luthier.kernels.allocator import keep_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

keeps, cpu, before = keep_freed_memory(), torch.device("cpu"), resident()
blocks = [(torch.ones(2 << 20), torch.ones(3000)) for _ in range(40)]
pins = [small for _, small in blocks]
del blocks
kept, wide, narrow = resident(), KeptMemory(cpu, before, 1 << 30), KeptMemory(cpu, before, 1 << 20)
print(json.dumps([keeps, before, kept, wide.hold(), narrow.hold(), resident()]))
"""


def test_freed_memory_is_kept_up_to_a_limit_and_then_handed_back():
    """320 MiB of freed blocks between small ones that stay: within the limit they stand, above it they go."""
    done = subprocess.run([sys.executable, "-c", KEEPING], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    keeps, before, kept, wide, narrow, after = json.loads(done.stdout)
    if not keeps:
        pytest.skip("this C library keeps nothing")
    assert kept - before > 250 << 20 and not wide
    assert narrow and after - before < 60 << 20


def test_what_is_held_from_step_to_step_adds_up():
    """Weights with frozen ones, gradients of what is trained, two moments and a step count."""
    model = small_model()
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = make_adamw(parameter_groups(model, parameters, spec_of()), spec_of())
    for p in parameters.values():
        p.grad = torch.ones_like(p)
    optimizer.step()
    trained = sum(p.nbytes for p in parameters.values())
    held = held_bytes(model, parameters.values(), optimizer)
    assert held["gradients"] == trained and held["optimizer state"] == 2 * trained + 4 * len(parameters)
    assert held["weights"] >= sum(p.nbytes for p in model.parameters())
