"""One step: the divisor, the guard, what moves (GA1-GA4, B1-B3, B22, B24)."""

import copy
import json
import math

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, GPTNeoXConfig, GPTNeoXForCausalLM

from luthier.adapters.lora import apply_lora
from luthier.config.adapter import AdapterSpec
from luthier.engine.evaluation import dev_figures
from luthier.engine.inputs import StepPlan, batches_of
from luthier.engine.optimizers import make_adamw
from luthier.engine.param_groups import parameter_groups
from luthier.engine.step import NonFinite, train_step
from luthier.errors import TrainError
from luthier.losses.sft import sft_loss_sum
from luthier.models.load import load_model
from luthier.types import EncodedRow
from tests.engine.small import VOCAB, make_batch, plan_epoch, rows, run, same, small_model, spec_of, weights_of


def _one_step(model, micro_batches, chosen, **changes):
    spec = spec_of(**changes)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = make_adamw(parameter_groups(model, parameters, spec), spec)
    batches = batches_of(chosen, micro_batches, make_batch, torch.device("cpu"))
    return train_step(
        model, sft_loss_sum, list(parameters.values()), optimizer, batches, step=1, learning_rate=1e-2, spec=spec
    )


def _manual(model, chosen):
    """Loss and gradients of the token mean, each row on its own, labels -100 where nothing is trained."""
    total, count = 0.0, 0
    for row in chosen:
        ids = torch.tensor([row.ids])
        labels = torch.tensor([[i if t else -100 for i, t in zip(row.ids, row.trained, strict=True)]])
        logits = model(input_ids=ids).logits[0, :-1]
        total = total + F.cross_entropy(logits, labels[0, 1:], ignore_index=-100, reduction="sum")
        count += int((labels[0, 1:] != -100).sum())
    (total / count).backward()
    return (total / count).item(), count


@pytest.mark.known_bug("GA1", "GA2", "GA4")
@pytest.mark.parametrize("width", [1, 2, 3, 8])
def test_micro_batches_change_nothing(width):
    """(8 rows in one batch) = (one by one) = pairs = a ragged last window: loss, norm and every gradient (B1, B2,
    GA1-GA3).
    """
    chosen = rows(8, seed=4)
    model, reference = small_model(), small_model()
    for each in (model, reference):  # a B that is not zero, so that A has gradients too
        torch.manual_seed(2)
        for name, p in each.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p, std=0.1)
    micro_batches = [list(range(start, min(start + width, 8))) for start in range(0, 8, width)]
    figures = _one_step(model, micro_batches, chosen, max_grad_norm=None)
    loss, count = _manual(reference, chosen)
    assert figures.loss == pytest.approx(loss, rel=1e-6) and figures.num_trained == count
    assert figures.num_tokens == sum(len(row.ids) for row in chosen)
    assert figures.grad_norm > 0
    for (name, got), (_, expected) in zip(model.named_parameters(), reference.named_parameters(), strict=True):
        if expected.requires_grad:
            torch.testing.assert_close(got.grad, expected.grad, rtol=1e-4, atol=1e-7, msg=name)
        else:
            assert got.grad is None, name


@pytest.mark.known_bug("GA3")
def test_last_window_of_an_epoch_is_divided_by_its_own_tokens(tmp_path):
    """5 micro-batches at 3 a step: the second step holds 2; its loss and gradients are those of the mean over their
    tokens (GA3).
    """
    chosen = rows(5, seed=3)
    spec = spec_of(micro_batch_tokens=8, gradient_accumulation_steps=3, num_epochs=1, learning_rate=1e-9)

    def one_by_one(row_set, *_):
        return [[index] for index in range(len(row_set))]

    plan = StepPlan(chosen, one_by_one, spec)
    assert [len(step.micro_batches) for step in plan.steps_from(0, 0)] == [3, 2] and plan.total_steps == 2
    run(small_model(), spec, tmp_path, train_set=chosen, dev_set=None, plan_epoch=one_by_one)
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for got, part in zip(logged, (chosen[:3], chosen[3:]), strict=True):
        reference = small_model()
        assert got["loss"] == pytest.approx(_manual(reference, part)[0], rel=1e-6)
        norm = torch.nn.utils.get_total_norm([p.grad for p in reference.parameters() if p.grad is not None])
        assert got["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)


@pytest.mark.known_bug("GA3")
def test_a_micro_batch_without_trained_tokens_counts_for_nothing():
    """First, in the middle, last: loss and gradients are those of the other rows, and nothing is divided by 0. The same
    for the dev loss.
    """
    silent = EncodedRow("mute", (1, 2, 3, 4), (False,) * 4)
    spoken = rows(2, seed=4)
    model, reference, cpu = small_model(), small_model(), torch.device("cpu")
    loss, count = _manual(reference, spoken)
    in_between = [silent, spoken[0], silent, spoken[1], silent]
    figures = _one_step(model, [[0], [1], [2], [3], [4]], in_between, max_grad_norm=None)
    assert figures.loss == pytest.approx(loss, rel=1e-6) and figures.num_trained == count
    for (name, got), (_, expected) in zip(model.named_parameters(), reference.named_parameters(), strict=True):
        if expected.requires_grad:
            torch.testing.assert_close(got.grad, expected.grad, rtol=1e-4, atol=1e-7, msg=name)
    dev = dev_figures(small_model(), sft_loss_sum, [*spoken, silent], [[2], [0], [1]], make_batch, cpu, lambda: False)[
        "loss"
    ]
    assert dev == pytest.approx(loss, rel=1e-6)


@pytest.mark.known_bug("GA2")
def test_the_divisor_does_not_depend_on_the_model_class(tmp_path):
    """GPT-NeoX, through transformers: five micro-batches or one, the gradients of the token mean."""
    torch.manual_seed(0)
    shapes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=VOCAB, **shapes)).save_pretrained(tmp_path)
    chosen, gradients = rows(5, seed=4), []
    for micro_batches in ([[0, 1, 2, 3, 4]], [[0], [1], [2], [3], [4]]):
        model = load_model(tmp_path)
        figures = _one_step(model, micro_batches, chosen, max_grad_norm=None)
        loss, count = _manual(AutoModelForCausalLM.from_pretrained(tmp_path), chosen)
        assert (figures.loss, figures.num_trained) == (pytest.approx(loss, rel=1e-5), count)
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    reference = AutoModelForCausalLM.from_pretrained(tmp_path)
    _manual(reference, chosen)
    for name, p in reference.named_parameters():
        for got in gradients:
            torch.testing.assert_close(got[name], p.grad, rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.known_bug("OP")
def test_updates_far_below_the_rounding_step_of_a_half_precision_base_are_kept(tmp_path, tiny_base):
    """bfloat16 keeps 8 bits: a weight of 0.1 would not feel an update of 1e-6. Adapters are float32 and do."""
    model = load_model(tiny_base, dtype="bfloat16")
    adapted = apply_lora(model, AdapterSpec(lora_r=4), seed=1)
    torch.manual_seed(2)
    for layer in adapted.layers.values():
        torch.nn.init.normal_(layer.lora_B, std=0.1)
    before = weights_of(model)
    run(model, spec_of(max_steps=2, learning_rate=1e-6, lr_scheduler="constant"), tmp_path, dev_set=None)
    for name, weight in weights_of(model).items():
        moved = (weight - before[name]).abs()
        assert (moved > 0).float().mean() > 0.95 and moved.max() < 1e-5, name


@pytest.mark.known_bug("GC1")
def test_every_adapter_moves_and_nothing_else_does(tmp_path):
    """After two steps every lora_A and lora_B has moved (GC1, B17); the base is untouched, bit for bit."""
    model = small_model()
    before, state = weights_of(model), copy.deepcopy(model.state_dict())
    run(model, spec_of(max_steps=2), tmp_path, dev_set=None)
    for name, weight in weights_of(model).items():
        assert (weight != before[name]).float().mean() > 0.99, name
    for name, weight in model.state_dict().items():
        assert name in before or torch.equal(weight, state[name]), name


def test_clipping_scales_the_whole_gradient():
    """The reported norm is the one before clipping; afterwards the norm is the bound."""
    model = small_model()
    figures = _one_step(model, [[0, 1]], rows(2), max_grad_norm=1e-3)
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    assert figures.grad_norm > 1e-2 and norm.item() == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("where", ["loss", "gradient norm"])
def test_a_number_that_is_not_finite_never_reaches_the_weights(tmp_path, where):
    """The step is skipped, by name; the second in a row ends the run. Weights stand; both are in the ledger with their
    rows; the log has the figure as it was (B24).
    """
    model = small_model()

    def broken(logits_KV, targets_K):
        if run_calls.append(1) or len(run_calls) <= 3:
            return sft_loss_sum(logits_KV, targets_K)
        if where == "loss":
            return sft_loss_sum(logits_KV, targets_K) * float("nan")
        return sft_loss_sum(logits_KV, targets_K).clone().requires_grad_() + _Exploding.apply(logits_KV)

    run_calls: list[int] = []
    weights_at_3: dict[str, torch.Tensor] = {}

    def progress(done, total, **figures):
        if done == 3:
            weights_at_3.update(weights_of(model))

    from luthier.engine.loop import train

    said = []
    with pytest.raises(TrainError, match=f"step 5: {where} is (nan|inf); no update was made. Rows: row-") as error:
        train(
            model, broken, spec_of(), train_set=rows(24), dev_set=None, make_batch=make_batch, plan_epoch=plan_epoch,
            run_dir=tmp_path, progress=progress, rehearse=False, notice=said.append,
        )  # fmt: skip
    assert "last checkpoint is sound" in error.value.hint
    assert same(weights_of(model), weights_at_3)
    ledger = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert [record["step"] for record in ledger] == [4, 5] and all(r["row_ids"][0][:4] == "row-" for r in ledger)
    (notice,) = said
    assert notice.startswith(f"step 4: {where} is ") and "skipped.jsonl" in notice
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged] == [1, 2, 3, 4]
    assert not math.isfinite(logged[-1]["loss" if where == "loss" else "grad_norm"])


class _Exploding(torch.autograd.Function):
    """0 forward, infinity backward."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.new_zeros(())

    @staticmethod
    def backward(ctx, dy):
        return torch.full_like(ctx.saved_tensors[0], float("inf"))


def test_only_the_rows_of_the_bad_micro_batch_are_blamed():
    """Two micro-batches, one NaN: the error names that one's rows only."""
    model, calls = small_model(), []

    def broken(logits_KV, targets_K):
        calls.append(1)
        return sft_loss_sum(logits_KV, targets_K) * (float("nan") if len(calls) == 2 else 1.0)

    spec, parameters = spec_of(), {n: p for n, p in model.named_parameters() if p.requires_grad}
    batches = batches_of(rows(4), [[0, 1], [2, 3]], make_batch, torch.device("cpu"))
    optimizer = make_adamw(parameter_groups(model, parameters, spec), spec)
    with pytest.raises(NonFinite) as error:
        train_step(
            model, broken, list(parameters.values()), optimizer, batches,
            step=9, learning_rate=1e-3, spec=spec,
        )  # fmt: skip
    assert error.value.row_ids == ("row-2", "row-3")


def test_nothing_to_train_is_refused(tmp_path):
    """No rows, no trained token, no trainable parameter, a best metric without a dev split: each an error that says
    so.
    """
    with pytest.raises(TrainError, match="training split is empty"):
        run(small_model(), spec_of(), tmp_path, train_set=[])
    silent = [EncodedRow("mute", (1, 2, 3), (False, False, False))]
    with pytest.raises(TrainError, match="step 1: no token carries loss in rows mute"):
        run(small_model(), spec_of(), tmp_path, train_set=silent, dev_set=None)
    frozen = small_model()
    frozen.requires_grad_(False)
    with pytest.raises(TrainError, match="no parameter of the model is trainable"):
        run(frozen, spec_of(), tmp_path)
    with pytest.raises(TrainError, match="need a dev split"):
        run(small_model(), spec_of(early_stopping_patience=1), tmp_path, dev_set=None)
