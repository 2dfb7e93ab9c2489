"""The heaviest batch once before step 1: found, played, undone bit for bit; and what a prediction may claim."""

import pytest
import torch

from luthier.engine import checkpoint
from luthier.engine.inputs import fullest
from luthier.engine.loop import train
from luthier.engine.memory import OutOfMemory, PeakMemory
from luthier.engine.optimizers import load_moments, make_adamw, moments
from luthier.engine.param_groups import parameter_groups
from luthier.engine.rehearsal import Rehearser, heaviest, predict_bytes, shortened
from luthier.errors import Interrupted, TrainError
from luthier.losses.sft import sft_loss_sum
from luthier.types import EncodedRow
from tests.engine.small import make_batch, plan_epoch, rows, run, same, small_model, spec_of, weights_of


def _row(name: str, num_prompt: int, num_answer: int) -> EncodedRow:
    return EncodedRow(name, (7,) * (num_prompt + num_answer), (False,) * num_prompt + (True,) * num_answer)


def _tensors(run_dir, step):
    folder = checkpoint.folder_of(run_dir / "checkpoints", step)
    names = ("weights", "optimizer", "rng")
    return {f"{n}.{k}": t for n in names for k, t in checkpoint.load_file(folder / f"{n}.safetensors").items()}


@pytest.mark.known_bug("GC2")
@pytest.mark.parametrize("resumed", [False, True])
def test_training_with_and_without_it_is_the_same_bit_for_bit(tmp_path, resumed):
    """Dropout, moments, generators: every tensor of the last checkpoint, on a fresh start and on a resumed one."""
    spec, results = spec_of(save_steps=2, weight_decay=0.1), []
    seen: list[int] = []
    for rehearse in (True, False):
        folder, model = tmp_path / str(rehearse), small_model(dropout=0.2)
        if resumed:
            seen.clear()
            with pytest.raises(Interrupted):
                run(
                    small_model(dropout=0.2), spec, folder, rehearse=rehearse, stop=lambda: seen[-1:] == [3],
                    progress=lambda done, total, **figures: seen.append(done),
                )  # fmt: skip
        results.append(run(model, spec, folder, rehearse=rehearse))
    with_it, without = results
    assert same(*(_tensors(tmp_path / str(rehearse), with_it.steps) for rehearse in (True, False)))
    assert with_it.history == without.history and with_it.tokens == without.tokens
    assert with_it.rehearsal is not None and without.rehearsal is None
    assert with_it.waste.recompute_s > 0 == without.waste.recompute_s


@pytest.mark.parametrize("steps_before", [0, 2])
def test_what_it_moves_is_put_back(steps_before):
    """Weights, moments (none at the start), gradients and generators; a model whose loss is not a number as well."""
    model, spec = small_model(dropout=0.3), spec_of()
    model.train()
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = make_adamw(parameter_groups(model, parameters, spec), spec)
    if steps_before:
        states = {
            f"{n}.{what}": torch.rand_like(p) for n, p in parameters.items() for what in ("exp_avg", "exp_avg_sq")
        }
        steps = {f"{name}.step": torch.tensor(float(steps_before)) for name in parameters}
        load_moments(optimizer, parameters, states | steps)
    held = {name: value.clone() for name, value in moments(optimizer, parameters).items()}
    before, moved = (weights_of(model), held), []

    def loss(logits_KV, targets_K):
        moved.append(torch.rand(1))
        return sft_loss_sum(logits_KV, targets_K) * (float("nan") if len(moved) > 1 else 1.0)

    rehearser, peak = Rehearser(model, loss, parameters, optimizer), PeakMemory(torch.device("cpu"))
    generator = torch.get_rng_state()
    for _ in range(2):
        figures = rehearser.rehearse(rows(4), [0, 1, 2, 3], make_batch, peak, None)
        assert figures is not None and figures.num_tokens == sum(len(row.ids) for row in rows(4))
        assert same(weights_of(model), before[0]) and same(moments(optimizer, parameters), before[1])
        assert torch.equal(torch.get_rng_state(), generator)
        assert all(p.grad is None for p in parameters.values())
    assert len(moved) == 2 and peak.peak_bytes >= figures.peak_bytes > 50_000_000


def test_the_heaviest_is_the_one_with_most_tokens_then_most_kept_positions(tmp_path):
    """Not the one with most rows, and not the first; the run rehearses exactly that one, in one micro-batch."""
    chosen = [_row("a", 8, 2), _row("b", 9, 1), _row("c", 2, 8), *[_row(f"s{i}", 1, 1) for i in range(4)]]
    assert heaviest(chosen, [[0], [1], [3, 4, 5, 6], [2]], make_batch) == [2]
    assert fullest([[0], [3, 4], [0, 3]], [len(row.ids) for row in chosen], 2) == [[0, 3], [0]]
    passes: list[int] = []
    model = small_model()
    model.model.register_forward_pre_hook(lambda *_: passes.append(1))

    def progress(done, total, **figures):
        if done == 1:
            counted.append(len(passes))

    counted: list[int] = []
    result = run(
        model, spec_of(micro_batch_tokens=10, num_epochs=1), tmp_path, train_set=chosen, dev_set=None,
        plan_epoch=lambda *_: [[0], [1], [3, 4, 5, 6], [2]], progress=progress,
    )  # fmt: skip
    assert result.rehearsal is not None
    assert (result.rehearsal.num_tokens, result.rehearsal.num_kept) == (10, 8)
    assert counted == [2], "one forward for the rehearsal, one for step 1"


def test_the_dev_split_is_rehearsed_too(tmp_path):
    """A dev row that runs out of memory stops the run before step 1, by its name."""
    giant = EncodedRow("giant", (5,) * 60, (False,) * 30 + (True,) * 30)

    def loss(logits_KV, targets_K):
        if len(targets_K) == 30:
            raise MemoryError
        return sft_loss_sum(logits_KV, targets_K)

    model = small_model()
    with pytest.raises(TrainError, match="row giant does not fit by itself: a dev batch of 60 tokens") as error:
        train(
            model, loss, spec_of(), train_set=rows(6), dev_set=[*rows(2, seed=9), giant], make_batch=make_batch,
            plan_epoch=plan_epoch, run_dir=tmp_path,
        )  # fmt: skip
    assert "train.sequence_len below 60" in error.value.hint
    assert not (tmp_path / "metrics.jsonl").read_text(), "before step 1"


def test_doubling_sizes_stop_before_what_will_not_fit():
    """With little memory left an eighth, a quarter and a half are measured; the whole is tried only if it will fit."""
    model, chosen = small_model(), [_row(f"r{i}", 8, 8) for i in range(16)]
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer, sizes = make_adamw(parameter_groups(model, parameters, spec_of()), spec_of()), []
    model.model.register_forward_pre_hook(lambda m, a, k: sizes.append(k["input_ids"].numel()), with_kwargs=True)

    class Staged(PeakMemory):
        """A machine on which every token takes 4 KiB, and which keeps what was freed."""

        def start(self):
            self.start_bytes = 10**6 + max(sizes, default=0) * 4096

        @property
        def peak_bytes(self):
            return 10**6 + max(sizes, default=0) * 4096

    def attempt(left_kib):
        sizes.clear()
        rehearser = Rehearser(model, sft_loss_sum, parameters, optimizer, lambda device: left_kib * 1024)
        return rehearser.rehearse(chosen, range(16), make_batch, Staged(torch.device("cpu")), None)

    plenty = attempt(1_000_000)
    assert plenty is not None and sizes == [256], "one micro-batch and nothing else"
    enough = attempt(1200)
    assert enough is not None and sizes == [32, 64, 128, 256], "the guess says more than half: step by step"
    assert enough.grown_bytes == 1024 * 1024
    with pytest.raises(OutOfMemory, match="predicted not to fit") as error:
        attempt(1100)
    assert sizes == [32, 64, 128] and (error.value.num_tokens, len(error.value.row_ids)) == (256, 16)
    with pytest.raises(OutOfMemory, match="predicted not to fit"):
        attempt(200)
    assert sizes == [32]


def test_predictions_follow_the_last_two_sizes():
    """Linear, never below what was seen, and silent before anything was measured."""
    assert predict_bytes([(0, 0)], 8) == 0
    assert predict_bytes([(0, 0), (8, 80)], 16) == 160
    assert predict_bytes([(0, 0), (8, 80), (16, 90)], 32) == 110
    assert predict_bytes([(8, 80), (16, 70)], 32) == 70


def test_shortened_rows_keep_the_end_that_is_trained():
    """Whole rows first, then the end of one; no first token is trained."""
    cut = shortened([_row("a", 2, 2), _row("b", 6, 3)], 9)
    assert [len(row.ids) for row in cut] == [4, 5] and cut[1].trained == (False, False, True, True, True)
    assert shortened([_row("a", 2, 6)], 4)[0].trained == (False, True, True, True)
