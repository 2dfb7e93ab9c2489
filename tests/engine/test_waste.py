"""Waste figures are counted, not assumed: padding, shared tokens, steps after the best, seconds that add up."""

import dataclasses
import time

import numpy as np
import pytest

from luthier.engine.loop import train
from luthier.engine.state import RunState, Waste
from luthier.errors import Interrupted
from luthier.losses.sft import sft_loss_sum
from tests.engine.small import make_batch, plan_epoch, rows, run, small_model, spec_of


def _padded(chosen):
    """Five positions at the end that belong to no document."""
    batch = make_batch(chosen)
    more = [np.concatenate([x, np.zeros(5, dtype=np.int64)]) for x in (batch.ids_T, batch.positions_T)]
    return dataclasses.replace(batch, ids_T=more[0], positions_T=more[1])


def test_padding_is_counted(tmp_path):
    """None in our own packs; five tokens a micro-batch where the packer pads."""
    num_tokens = sum(len(row.ids) for row in rows(24))
    plain = run(small_model(), spec_of(num_epochs=1), tmp_path / "a", dev_set=None)
    assert plain.waste.padding_tokens == 0 and plain.tokens == num_tokens
    padded = run(small_model(), spec_of(num_epochs=1), tmp_path / "b", dev_set=None, make_batch=_padded)
    assert padded.waste.padding_tokens == 5 * padded.steps == padded.tokens - num_tokens
    assert padded.waste.shared_tokens == plain.waste.shared_tokens == 0


def test_tokens_that_a_shared_prefix_saves_are_counted():
    """Rows of 100 tokens of which 30 were computed for all of them, over a run with 5 positions of padding."""
    state = RunState(step=4, num_tokens=705, num_padding=5, num_row_tokens=1000)
    assert Waste.of(state, 4).shared_tokens == 300


def test_steps_after_the_best_and_the_seconds_add_up(tmp_path):
    """Best at step 4 of 8; slow evaluations are evaluation, a slow start is idle, and all of it is the wall time."""
    scores = iter([0.1, 0.9, 0.5, 0.4, 0.3])

    def on_eval(step, sampler):
        time.sleep(0.05)
        return {"acc": next(scores)}

    spec = spec_of(eval_steps=2, metric_for_best="acc", eval_task_rows=1, max_steps=8, num_epochs=3)
    began = time.perf_counter() - 5
    result = run(small_model(), spec, tmp_path, on_eval=on_eval, make_sampler=lambda: None, began=began)
    waste = result.waste
    assert result.startup_s is not None and 5 < result.startup_s < 5 + result.seconds + waste.recompute_s + 5
    assert waste.after_best_steps == 4 and waste.evaluation_s >= 0.2
    assert waste.after_best_s == pytest.approx((result.seconds - waste.evaluation_s) / 2)
    assert waste.idle_s >= 4.9 and waste.recompute_s > 0
    assert waste.wall_s == pytest.approx(result.seconds + waste.recompute_s + waste.idle_s)


def test_seconds_of_earlier_sessions_are_kept(tmp_path):
    """Stopped and resumed: the wall time, the rehearsals and the start-ups of both count."""
    seen: list[int] = []
    with pytest.raises(Interrupted):
        run(
            small_model(), spec_of(), tmp_path, began=time.perf_counter() - 7, stop=lambda: seen[-1:] == [3],
            progress=lambda done, total, **figures: seen.append(done),
        )  # fmt: skip
    result = run(small_model(), spec_of(), tmp_path, began=time.perf_counter() - 2)
    assert result.waste.wall_s > 9 and result.waste.idle_s > 8.5 and 2 < (result.startup_s or 0) < 7


@pytest.mark.parametrize("where", ["step", "evaluation"])
def test_an_attempt_that_ran_out_of_memory_is_recompute_and_counted_once(tmp_path, where):
    """Half a second is lost in it; steps, evaluation, recompute and idle still add up to the wall time."""
    calls: list[int] = []

    def loss(logits_KV, targets_K):
        calls.append(len(targets_K))
        if len(calls) == (1 if where == "step" else 3):
            time.sleep(0.5)
            raise MemoryError
        return sft_loss_sum(logits_KV, targets_K)

    result = train(
        small_model(), loss, spec_of(max_steps=2), train_set=rows(24), dev_set=rows(8, seed=9), make_batch=make_batch,
        plan_epoch=plan_epoch, run_dir=tmp_path, rehearse=False,
    )  # fmt: skip
    waste = result.waste
    assert waste.recompute_s >= 0.5 and result.max_tokens is not None
    assert waste.wall_s == pytest.approx(result.seconds + waste.recompute_s + waste.idle_s)
