"""Every loss of the registry on the packed path: a sum over any split of the rows, whatever the layout."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from luthier.config.loss import OPTIONS, LossSpec
from luthier.data.pack import at_last_token, make_batch, make_shared_batch, with_columns
from luthier.engine.inputs import to_device
from luthier.losses.loss import Objective, count_units, sums_of
from luthier.losses.registry import LOSSES, make_loss, needs_of
from luthier.losses.sequences import one_side, sequence_logps
from luthier.losses.tokens import TokenLoss, noisy_embeddings
from luthier.models.load import load_model
from luthier.types import EncodedRow
from tests.tiny import make_tiny_base

CPU = torch.device("cpu")
SPECS = [
    LossSpec(),
    LossSpec(label_smoothing=0.1),
    LossSpec(earlier_turns=0.3),
    LossSpec(earlier_turns=0.3, label_smoothing=0.1, kl_to_base=0.5),
    LossSpec(kind="continued", kl_to_base=0.2),
    LossSpec(kind="distill", teacher="x", divergence="js", temperature=2.0, nll_weight=0.3),
    LossSpec(kind="distill", teacher="x", divergence="reverse_kl", earlier_turns=0.3),
    *(LossSpec(kind="dpo", variant=v) for v in ("sigmoid", "ipo", "hinge", "robust", "sigmoid_norm")),
    *(LossSpec(kind=kind) for kind in ("orpo", "simpo", "cpo", "kto", "classify", "regress")),
    LossSpec(kind="reward", margin_column="by", center_weight=0.1),
    *(LossSpec(kind="grpo", variant=v, clip_low=0.9, clip_high=9, kl_to_base=0.2) for v in ("grpo", "dr_grpo", "dapo")),
    LossSpec(kind="gkd", teacher="x", divergence="js", js_beta=0.8),
    LossSpec(kind="ppo", clip_low=0.9, clip_high=9, value_clip=9, value_coef=0.5),
]  # fmt: skip


def named(spec: LossSpec) -> str:
    return "-".join(f"{v}" for v in spec.model_dump(exclude_none=True).values() if v not in (0.0, 1.0))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny decoder with three scores and a value head."""
    made = load_model(make_tiny_base(tmp_path_factory.mktemp("policy") / "base", seed=3))
    torch.manual_seed(0)
    made.score, made.value_head = nn.Linear(64, 3, bias=False), nn.Linear(64, 1)
    return made


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Another one: teacher and reference."""
    return load_model(make_tiny_base(tmp_path_factory.mktemp("other") / "base", seed=4))


def rows_for(spec: LossSpec, count: int = 6) -> list[EncodedRow]:
    """Rows under two prompts of 40 tokens, shaped as the objective wants them."""
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(3, 250, (40,), generator=generator).tolist() for _ in range(2)]

    def one(number: int, prompt: list[int], extra: int) -> EncodedRow:
        answer = torch.randint(3, 250, (2 + number % 4 + extra,), generator=generator).tolist()
        ends = spec.has_score_head
        trained = (False,) * (len(prompt) + (len(answer) - 1 if ends else 0)) + (True,) * (1 if ends else len(answer))
        ids = (*prompt, *answer)
        weights = tuple(0.3 if i % 3 else 1.0 for i in range(len(ids))) if spec.earlier_turns == 0.3 else ()
        return EncodedRow(f"row-{number}", ids, trained, weights)

    made = []
    for number in range(count):
        row = one(number, prompts[number % 2], 0)
        if spec.sequences in ("pairs", "scored_pairs", "labelled"):
            row = EncodedRow(row.row_id, row.ids, row.trained, (), (one(number, prompts[number % 2], 2),))
        made.append(row)
    return made


def columns_for(spec: LossSpec, rows: list[EncodedRow]) -> dict:
    """Every column that any loss reads."""
    return {
        "ref_logps_S": {r.row_id: tuple(-5.9 * sum(s.trained) for s in r.sequences) for r in rows},
        "label_R": {r.row_id: (float(i % 2),) for i, r in enumerate(rows)},
        "margin_R": {r.row_id: (0.1 * i,) for i, r in enumerate(rows)},
        "class_R": {r.row_id: (float(i % 3),) for i, r in enumerate(rows)},
        "number_R": {r.row_id: (i / 2.0,) for i, r in enumerate(rows)},
        "old_logps_K": {r.row_id: (-5.6,) * sum(r.trained) for r in rows},
        "ref_logps_K": {r.row_id: (-5.9,) * sum(r.trained) for r in rows},
        "old_values_K": {r.row_id: (0.1,) * sum(r.trained) for r in rows},
        "returns_K": {r.row_id: (i - 2.0,) * sum(r.trained) for i, r in enumerate(rows)},
        "advantages_K": {r.row_id: ((-1.0) ** i * (1 + i),) * sum(r.trained) for i, r in enumerate(rows)},
    }


def sums(spec, model, other, rows, packs, lay_out, step=None):
    """(total, units) over packs. step: the loss as it is for the step; None = it sees all packs first."""
    lay_out = with_columns(lay_out, columns_for(spec, rows))
    batches = [to_device(lay_out([rows[i] for i in pack]), CPU) for pack in packs]
    if spec.has_score_head:
        batches = [at_last_token(batch) for batch in batches]
    loss = make_loss(spec, other)
    assert all(set(needs_of(loss)) <= set(batch.columns) for batch in batches)
    if step is None:
        step = loss.of_step(model, batches) if isinstance(loss, Objective) else loss
    parts = [sums_of(model, step, batch) for batch in batches]
    for part in parts:
        assert all(values.shape == (len(values),) and not values.requires_grad for values in part.figures.values())
    return sum(part.total for part in parts), sum(count_units(loss, batch) for batch in batches)


def test_the_matrix_names_every_loss():
    assert {spec.kind for spec in SPECS} == set(LOSSES) == set(OPTIONS)


@pytest.mark.known_bug("CE6")
@pytest.mark.parametrize("spec", SPECS, ids=named)
def test_is_a_sum_over_any_split_and_any_layout(spec, model, other):
    """One pack, packs of other sizes, and packs that share their prompts: the same loss, units and gradients."""
    rows, weight = rows_for(spec), model.model.layers[0].mlp.up_proj.weight
    seen = []
    for packs, lay_out in (
        ([range(6)], make_batch),
        ([[5, 0], [1], [4, 2, 3]], make_batch),
        ([range(6)], lambda chosen: make_shared_batch(chosen, min_prefix_tokens=8)),
    ):
        total, units = sums(spec, model, other, rows, packs, lay_out)
        seen.append((total.item(), units, torch.autograd.grad(total / units, weight)[0]))
    for total, units, gradient in seen[1:]:
        assert total == pytest.approx(seen[0][0], rel=1e-5, abs=1e-5) and units == pytest.approx(seen[0][1])
        torch.testing.assert_close(gradient, seen[0][2], rtol=1e-3, atol=1e-6)
    assert seen[0][2].abs().max() > 0 and seen[0][1] > 0


@pytest.mark.parametrize("spec", SPECS, ids=named)
def test_gradient_is_the_slope(spec, model, other):
    """Along its own direction: the loss a little further on and a little before, against the gradient's length."""
    rows, weight = rows_for(spec, 4), model.model.layers[1].self_attn.v_proj.weight
    step = make_loss(spec, other)
    if spec.kind == "kto":
        step = replace(step, baseline=torch.tensor(0.5))  # no gradient goes through its estimate

    def of() -> torch.Tensor:
        total, units = sums(spec, model, other, rows, [range(4)], make_batch, step)
        return total / units

    (gradient,) = torch.autograd.grad(of(), weight)
    direction, width, before, ends = gradient / gradient.norm(), 0.05, weight.detach().clone(), []
    with torch.no_grad():
        for sign in (1, -1):
            weight.copy_(before + sign * width * direction)
            ends.append(of().item())
        weight.copy_(before)
    assert (ends[0] - ends[1]) / (2 * width) == pytest.approx(gradient.norm().item(), rel=0.03, abs=1e-5)


def test_one_side_is_the_batch_of_that_side_alone(model):
    rows = rows_for(LossSpec(kind="dpo"))
    for lay_out in (make_batch, lambda chosen: make_shared_batch(chosen, min_prefix_tokens=8)):
        batch = to_device(lay_out(rows), CPU)
        by_id = {row.row_id: row for row in rows}
        for side in (0, 1):
            sides = [replace(by_id[name].sequences[side], companions=()) for name in batch.row_ids]
            alone = to_device(make_batch(sides), CPU)
            with torch.no_grad():
                got, expected = sequence_logps(model, one_side(batch, side, 2), 6), sequence_logps(model, alone, 6)
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_neftune_adds_what_the_paper_adds_and_only_in_training(model):
    """Noise within alpha / sqrt(tokens x hidden) of each document's own length, of that size, fresh at each pass."""
    rows = rows_for(LossSpec())
    batch, alpha = to_device(make_batch(rows), CPU), 5.0
    table = model.model.embed_tokens
    plain = table(batch.ids_T)
    model.train()
    try:
        with noisy_embeddings(model, batch, alpha):
            first, second = table(batch.ids_T), table(batch.ids_T)
        assert torch.equal(table(batch.ids_T), plain), "the noise ends with the pass"
        assert not torch.equal(first, second)
        for row, start, stop in zip(rows, batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True):
            reach = alpha / (len(row.ids) * 64) ** 0.5
            noise = (first - plain)[start:stop].abs()
            assert noise.max() <= reach * 1.0001 and noise.mean().item() == pytest.approx(reach / 2, rel=0.05)
        loss = TokenLoss(noise_alpha=alpha)
        noisy = loss.sums(model, batch).total
    finally:
        model.eval()
    still = loss.sums(model, batch).total
    assert still == sums_of(model, make_loss(LossSpec()), batch).total != noisy


def test_kl_to_an_equal_base_is_zero_and_so_is_its_pull(model):
    batch = to_device(make_batch(rows_for(LossSpec())), CPU)
    weight = model.model.layers[0].mlp.up_proj.weight
    held, plain = make_loss(LossSpec(kl_to_base=10.0), model), make_loss(LossSpec())
    totals = [sums_of(model, loss, batch).total for loss in (held, plain)]
    assert totals[0].item() == pytest.approx(totals[1].item(), rel=1e-6)
    got, expected = (torch.autograd.grad(total, weight)[0] for total in totals)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)
