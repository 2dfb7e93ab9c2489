"""A model that is not on the CPU, where no GPU is at hand: on the meta device (forward and backward; an operator whose
arguments are on two devices is refused there as on a GPU), and for one call of torch's own kernel as fake CUDA tensors.
What the numbers are on a GPU, benchmarks/gpu_suite.py says.
"""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from luthier.adapters.registry import Given, apply_method
from luthier.config.adapter import AdapterSpec
from luthier.errors import BaseModelError
from luthier.kernels.projection import stack_layers, why_apart
from luthier.kernels.varlen import attend_packed, plain_varlen
from luthier.losses.head import head_loss_sum
from luthier.losses.sft import sft_loss_sum
from luthier.models.attention import PackedAttention, plan_pack
from luthier.models.decoder import Decoder
from luthier.models.int8 import load_frozen, to_nf4
from luthier.models.load import load_model
from luthier.models.spec import read_config, spec_from_config
from tests.engine.small import make_batch, rows
from tests.tiny import make_tiny_base

BOUNDS, KEEP = [0, 5, 21, 30, 31], [2, 3, 4, 9, 20, 25, 29]
PLAN = plan_pack(torch.tensor(BOUNDS), torch.tensor(KEEP))
FAMILY = plan_pack(torch.tensor([0, 6, 10, 15]), torch.arange(15), [-1, 0, 0])


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("devices")
    return {arch: make_tiny_base(folder / arch, arch) for arch in ("llama", "qwen2", "gemma2", "phi3")}


def empty_decoder(folder, device: str, dtype: torch.dtype) -> Decoder:
    config = read_config(folder)
    with torch.device("meta"):
        model = Decoder(spec_from_config(config), config).to(dtype)
    model = model.to_empty(device=device)
    for group in model.projection_groups():
        if len(group) > 1:
            stack_layers(group)  # type: ignore[arg-type]
    return model


def plan_on(device: str):
    """A pack whose kept positions are on `device`."""
    plan = plan_pack(torch.tensor(BOUNDS), torch.tensor(KEEP))
    plan.keep_K = torch.empty(len(KEEP), dtype=torch.long, device=device)
    return plan


def forward(model: Decoder, device: str) -> torch.Tensor:
    """Hidden states at the kept positions, as Decoder.hidden computes them once it has read the batch's bounds."""
    plan, ids = plan_on(device), torch.empty(BOUNDS[-1], dtype=torch.long, device=device)
    return model.run(ids, model.packed_rope(ids, plan), model.attend(plan), plan.keep_K)


METHODS = {
    "lora": AdapterSpec(lora_r=4, lora_dropout=0.1), "longlora": AdapterSpec(method="longlora", longlora_group=8),
    "vera": AdapterSpec(method="vera", lora_r=4), "ia3": AdapterSpec(method="ia3"),
    "adalora": AdapterSpec(method="adalora", lora_r=4), "houlsby": AdapterSpec(method="houlsby", lora_r=4),
    "full": AdapterSpec(method="full"), "head": AdapterSpec(method="head"),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("arch", ["llama", "gemma2"])
def test_nothing_of_a_step_is_left_on_the_cpu(bases, arch, method, dtype):
    if dtype is torch.bfloat16 and method in ("full", "head"):
        pytest.skip("weights are trained in float32")
    model = empty_decoder(bases[arch], "meta", dtype)
    given = Given(lambda: None, lambda name: model.lm_head.weight, lambda text: [1])
    apply_method(model, METHODS[method], seed=0, given=given)
    model.train()
    targets = torch.empty(len(KEEP), dtype=torch.long, device="meta")
    head_loss_sum(model, sft_loss_sum, forward(model, "meta"), targets).backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert trained and {p.grad.device.type for p in trained if p.grad is not None} == {"meta"}
    assert all(p.grad is not None for p in trained)


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_a_4_bit_base_is_made_where_it_is_asked_for(bases, compute):
    model = load_model(bases["llama"])
    assert to_nf4(model, device=torch.device("meta"), compute=compute)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"} and model.dtype is compute
    apply_method(model, AdapterSpec(lora_r=4), seed=0, given=Given(lambda: None, lambda name: model, lambda text: []))
    hidden = forward(model, "meta")
    assert hidden.dtype is compute
    hidden.sum().backward()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_go_where_they_are_asked_for_and_stay_joined(bases, dtype):
    model = load_model(bases["llama"], dtype=dtype, device=torch.device("meta"))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    groups = [group for group in model.projection_groups() if len(group) > 1]
    assert groups and not any(why_apart(group) for group in groups)


def test_int8_on_a_gpu_is_refused(bases):
    with pytest.raises(BaseModelError, match="int8 is for CPUs"):
        load_frozen(bases["llama"], dtype="int8", sample=make_batch(rows(2)), device=torch.device("cuda"))


@pytest.fixture
def fake_heads():
    """Makes (tokens, heads, size) on a GPU that is not there."""
    with FakeTensorMode(), torch.no_grad():
        yield lambda *shape, dtype=torch.bfloat16: torch.empty(*shape, dtype=dtype, device="cuda")


def test_which_packs_torchs_kernel_gets(fake_heads):
    plan, family = PLAN, FAMILY
    q = fake_heads(BOUNDS[-1], 4, 64)
    assert PackedAttention(plan, (None,), 0.25).takes_varlen(0, q)
    assert PackedAttention(plan, (8,), 0.25).takes_varlen(0, q), "a sliding window it does itself"
    assert not PackedAttention(plan, (None,), 0.25, soft_cap=30.0).takes_varlen(0, q)
    assert not PackedAttention(family, (None,), 0.25).takes_varlen(0, fake_heads(15, 4, 64))
    for refused in (fake_heads(31, 4, 64, dtype=torch.float32), fake_heads(31, 4, 20), fake_heads(31, 4, 512)):
        assert not PackedAttention(plan, (None,), 0.25).takes_varlen(0, refused)


@pytest.mark.parametrize("window", [None, 8])
def test_torchs_kernel_takes_what_it_is_handed(fake_heads, window):
    """Names, shapes and devices only: the numbers of the same call are its twin's below."""
    q, k = fake_heads(31, 4, 64), fake_heads(31, 2, 64)
    bounds = torch.tensor(BOUNDS, dtype=torch.int32, device="cuda")
    out = attend_packed(q, k, k, bounds, 16, window=window, scale=0.1)
    assert out.shape == q.shape and out.device.type == "cuda" and out.dtype is torch.bfloat16


@pytest.mark.parametrize("takes_groups", [True, False])
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("pruned", [False, True])
def test_the_call_around_the_kernel_is_the_loop(takes_groups, window, pruned):
    """Values and gradients, with the kernel's twin in its place."""
    plan = plan_pack(torch.tensor(BOUNDS), torch.tensor(KEEP) if pruned else torch.arange(BOUNDS[-1]))
    attend, draw = PackedAttention(plan, (window,), 0.3), torch.Generator().manual_seed(0)
    num_queries = len(KEEP) if pruned else BOUNDS[-1]
    heads = [torch.randn(n, h, 8, generator=draw, dtype=torch.float64) for n, h in ((num_queries, 4), (31, 2), (31, 2))]
    weigh = torch.randn(num_queries, 32, generator=draw, dtype=torch.float64)
    kernel = (plain_varlen if takes_groups else without_groups, takes_groups)
    found = []
    for run in (attend, lambda layer, q, k, v: attend.by_varlen(layer, q, k, v, kernel)):
        leaves = [x.clone().requires_grad_() for x in heads]
        out = run(0, *leaves)
        (out * weigh).sum().backward()
        found.append([out.detach(), *(x.grad for x in leaves)])
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def without_groups(query, key, value, *rest, scale, window_size):
    """As torch's function was before it took fewer key heads than query heads."""
    assert query.shape[1] == key.shape[1] == value.shape[1]
    return plain_varlen(query, key, value, *rest, scale=scale, window_size=window_size)
