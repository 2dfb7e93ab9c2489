"""The doctor's look at the machine: GPU and its driver, folders, disk, clock, memory, threads, speed.

A folder is judged by really writing a file there: permissions, read-only mounts, full disks and quotas all show in that
one act, also for the superuser. Facts of the GPU come as one record, so that every combination can be tested.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from luthier.bases.resolve import default_cache_dir
from luthier.bases.shapes import Shapes
from luthier.errors import ConfigError
from luthier.graders.sandbox.box import sandbox_tier
from luthier.jobs.device import Gpu, choose_device
from luthier.jobs.finding import Finding
from luthier.models.probe import probe_machine
from luthier.plan.machines import usable_memory_bytes

GIB = 1 << 30
TRIAL_BYTES = 1 << 20
LOW_DISK_BYTES, LITTLE_DISK_BYTES = GIB, 4 * GIB
LOW_MEMORY_BYTES = 2 * GIB
MAX_SKEW_S = 2.0
SLOW_GFLOPS = 20.0
# The shapes of the embedded default base, the smallest that anybody trains.
PROBE_SHAPES = Shapes(
    model_type="llama", architecture="LlamaForCausalLM", num_layers=30, hidden_size=576, num_heads=9, num_kv_heads=3,
    head_dim=64, ffn_size=1536, vocab_size=49152, max_positions=2048, tied=True, attention_bias=False,
    sliding_window=None, rope_theta=1e5, rope_type="default", dtype="float32", num_parameters=134_515_008,
)  # fmt: skip


def gpu(found: Gpu) -> Finding:
    """The GPU, and whether driver, torch and device fit together."""
    if not found.usable and not found.driver:
        return Finding(
            "GPU", "none", "note", "training runs on the CPU", "`luthier plan --all-machines` says what one saves"
        )
    if not found.built_for:
        what = f"driver {found.driver}, torch {torch.__version__}"
        return Finding(
            "GPU",
            what,
            "warning",
            "this build of torch is for the CPU: the GPU would lie idle",
            "install torch's CUDA build",
        )
    if not found.usable:
        what = f"driver {found.driver or 'absent'}, torch for CUDA {found.built_for}"
        why = "torch cannot open the GPU: its driver is too old for this CUDA, or the device is not given to us"
        mend = (
            f"update the driver, or install torch for an older CUDA than {found.built_for}; in a container pass the GPU"
        )
        return Finding("GPU", what, "warning", why, mend)
    what = f"{found.name}, {found.memory_bytes / GIB:.0f} GiB, {found.capability}, driver {found.driver or 'unknown'}"
    major = found.capability.removeprefix("sm_")[:-1]
    fits = any(kernel.split("_")[-1].rstrip("af")[:-1] == major for kernel in found.kernels)
    if found.kernels and not fits:
        why = f"torch has kernels for {', '.join(found.kernels)}, none for it: every operation would fail"
        return Finding("GPU", what, "problem", why, "install a torch build that lists this architecture")
    return Finding("GPU", what)


def device(asked: str, found: Gpu) -> Finding:
    """What training would compute on with train.device: `asked`."""
    try:
        chosen = choose_device(asked, found)
    except ConfigError as error:
        return Finding("device", asked, "problem", str(error), error.hint)
    if found.usable and asked == "auto":
        return Finding("device", str(chosen), "note", "the GPU is not used", "set train.device: cpu to say it is meant")
    return Finding("device", str(chosen))


def folder(what: str, path: Path, name_of_setting: str) -> Iterator[Finding]:
    """Whether a folder (or the one it will be made in) takes files, and how much room there is."""
    where = _existing(path)
    mend = f"set {name_of_setting} to a folder that you own and that has room"
    try:
        with tempfile.NamedTemporaryFile(dir=where, prefix=".luthier-doctor-") as file:
            file.write(os.urandom(TRIAL_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        yield Finding(what, str(path), "problem", f"a file of 1 MiB cannot be written there ({error.strerror})", mend)
        return
    yield Finding(what, str(path))
    room = os.statvfs(where)
    free_bytes = shutil.disk_usage(where).free
    told = f"{free_bytes / GIB:.1f} GiB free"
    if room.f_files and not room.f_favail:
        yield Finding(
            f"{what} disk", told, "problem", "no file can be made there: its file system is out of inodes", mend
        )
    elif free_bytes < LITTLE_DISK_BYTES:
        verdict = "problem" if free_bytes < LOW_DISK_BYTES else "warning"
        why = "a converted base takes 0.5 GiB, a merged model and its GGUF files twice the base's size"
        yield Finding(f"{what} disk", told, verdict, why, f"{mend}, or free some")
    else:
        yield Finding(f"{what} disk", told)


def clock(path: Path) -> Finding:
    """The clock against the file system's, luthier's own files and what lies in `path` already."""
    now = time.time()
    where = _existing(path)
    try:
        with tempfile.NamedTemporaryFile(dir=where, prefix=".luthier-doctor-") as file:
            file.write(b"x")
            file.flush()
            skew_s = os.stat(file.name).st_mtime - now
    except OSError:
        return Finding("clock", "unchecked", "note", f"{where} takes no file", "see above")
    mend = "set the clock (chronyd, ntpd or timedatectl set-ntp true), on the file server too"
    if abs(skew_s) > MAX_SKEW_S:
        why = "changed files are told by size and time: with two clocks a change could be missed"
        return Finding("clock", f"{skew_s:+.1f} s between this machine and {where}", "warning", why, mend)
    newest = max((entry.stat().st_mtime for entry in os.scandir(where)), default=0.0)
    made = Path(__file__).stat().st_mtime
    if max(newest, made) > now + 60:
        why = "it goes backwards: what is newest would be taken for older, and certificates may count as not yet valid"
        return Finding("clock", f"{max(newest, made) - now:.0f} s behind files that lie here", "warning", why, mend)
    return Finding("clock", "as the file system's, and after everything written before")


def memory(limit_bytes: int | None = None, meminfo: Path = Path("/proc/meminfo")) -> Iterator[Finding]:
    """What a process may use, and what is free now."""
    limit_bytes = usable_memory_bytes() if limit_bytes is None else limit_bytes
    facts = dict(re.findall(r"^(\w+):\s+(\d+) kB", meminfo.read_text(), re.MULTILINE)) if meminfo.is_file() else {}
    total_bytes = int(facts.get("MemTotal", 0)) << 10
    free_bytes = min(int(facts.get("MemAvailable", limit_bytes >> 10)) << 10, limit_bytes)
    limited = (
        f" (a control group's limit; the machine has {total_bytes / GIB:.1f})"
        if limit_bytes < 0.99 * total_bytes
        else ""
    )
    told = f"{limit_bytes / GIB:.1f} GiB{limited}, {free_bytes / GIB:.1f} free now"
    if min(limit_bytes, free_bytes) < LOW_MEMORY_BYTES:
        why = "the smallest base in float32 with its optimizer and packed rows takes about 2 GiB"
        mend = (
            "end what takes the memory, raise the container's limit, or lower train.micro_batch_tokens (`luthier plan`)"
        )
        yield Finding("memory", told, "warning", why, mend)
    else:
        yield Finding("memory", told)


@dataclass(frozen=True)
class Threads:
    """cores: what this process may run on; quota: CPUs' worth of time a control group grants, None = no limit."""

    cores: int
    quota: float | None
    torch_threads: int
    wait_policy: str
    load: float = 0.0

    @classmethod
    def here(cls) -> Threads:
        """This process's."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return cls(
            cores, cpu_quota(), torch.get_num_threads(), os.environ.get("OMP_WAIT_POLICY", ""), os.getloadavg()[0]
        )


def cpu_quota(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """CPUs that the control group grants, or None."""
    whole = root / "cpu.max"
    old = [root / "cpu" / name for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")]
    parts = whole.read_text().split() if whole.is_file() else [p.read_text().strip() for p in old if p.is_file()]
    if len(parts) != 2 or not parts[0].isdigit() or not int(parts[1]):
        return None
    return int(parts[0]) / int(parts[1])


def threads(found: Threads) -> Iterator[Finding]:
    """Threads against cores, what waiting threads do, and who else is on the machine."""
    cores = found.cores if found.quota is None else min(found.cores, max(1, round(found.quota)))
    limited = "" if found.quota is None else f", a quota of {found.quota:g} CPUs"
    told = f"{found.torch_threads} on {found.cores} cores{limited}"
    if found.torch_threads > cores:
        why = "more threads than cores wait for each other: steps take several times as long"
        yield Finding("threads", told, "warning", why, f"set train.num_threads: {cores} or OMP_NUM_THREADS={cores}")
    elif found.torch_threads < found.cores // 2:
        why = "cores lie idle while training"
        yield Finding("threads", told, "note", why, f"unset OMP_NUM_THREADS, or set train.num_threads: {cores}")
    else:
        yield Finding("threads", told)
    policy = found.wait_policy or "unset"
    if policy.upper() != "PASSIVE":
        why = "waiting OpenMP threads spin: measured 18 times slower where another process needs the cores"
        yield Finding(
            "OMP_WAIT_POLICY", policy, "warning", why, "unset it (luthier sets it), or export OMP_WAIT_POLICY=PASSIVE"
        )
    else:
        yield Finding("OMP_WAIT_POLICY", policy)
    if found.load > found.cores:
        why = "others use the cores: times that are measured now are not this machine's"
        yield Finding("load", f"{found.load:.1f} on {found.cores} cores", "note", why, "wait, or believe ratios only")


def instructions(cpuinfo: Path = Path("/proc/cpuinfo")) -> Finding:
    """What the processor can do for each dtype."""
    text = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.is_file() else ""
    flags = set((re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE) or [""])[0].split())
    names = {"AVX-512": "avx512f", "bf16": "avx512_bf16", "int8 (VNNI)": "avx512_vnni", "AMX": "amx_tile"}
    told = ", ".join(f"{name} {'yes' if flag in flags else 'no'}" for name, flag in names.items())
    if flags and "avx512_bf16" not in flags and "amx_bf16" not in flags:
        why = "without them a bfloat16 product is slower than float32"
        return Finding(
            "processor", told, "note", why, "leave model.dtype at float32, or auto: it is decided by measuring"
        )
    return Finding("processor", told if flags else "unknown")


def speed() -> Finding:
    """The start-up probe at the default base's shapes."""
    measured = probe_machine(PROBE_SHAPES, torch.get_num_threads(), usable_memory_bytes())
    rates = ", ".join(f"{name} {rate:,.0f}" for name, rate in measured.rates_gflops.items())
    told = f"{rates} GFLOP/s; memory {measured.bandwidth_gb_s:g} GB/s"
    if measured.rates_gflops.get("float32", 0.0) < SLOW_GFLOPS:
        why = "one plain AVX2 core reaches 50 and more (the figure that `luthier plan` counts with)"
        return Finding(
            "speed", told, "warning", why, "is the machine busy, or are threads wrong (above)? else rent one"
        )
    return Finding("speed", told)


def sandbox(tier: str) -> Finding:
    """Whether generated code can be run here; tier: graders/sandbox's own word after it has attacked itself."""
    if not tier.startswith("none"):
        return Finding("sandbox", tier)
    why = "answers that are code cannot be run safely here, so evaluate.metric: unit_tests is refused"
    return Finding("sandbox", tier, "note", why, "docs/sandbox.md says what the kernel must offer")


def examine(output_dir: Path, asked: str) -> Iterator[Finding]:
    """All of it, on this machine. asked: train.device."""
    cache, found = default_cache_dir(), Gpu.here()
    yield gpu(found)
    yield device(asked, found)
    yield from folder("cache", cache, "LUTHIER_CACHE")
    yield from folder("output", output_dir, "output_dir")
    yield clock(output_dir)
    yield from memory()
    yield from threads(Threads.here())
    yield instructions()
    yield speed()
    yield sandbox(sandbox_tier())


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path
