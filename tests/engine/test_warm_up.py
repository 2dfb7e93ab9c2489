"""The warm-up fetches what the first step calls, draws no random number and never stands in the way of a run."""

import subprocess
import sys

import pytest
import torch

from luthier.engine import warm_up
from luthier.kernels import jit

FIRST_STEP = """
import sys
from pathlib import Path
import torch
from luthier.engine.warm_up import start_warm_up
from luthier.kernels import causal_attention, cross_entropy, gated, norm, rotation

loops = {
    f"{module.__name__}.{name}": loop
    for module in (causal_attention, cross_entropy, gated, norm, rotation) for name, loop in vars(module).items()
    if hasattr(loop, "signatures") and name.endswith(("forward_rows", "backward_rows", "_tasks"))
}
drawn = torch.get_rng_state()
start_warm_up().join()
assert torch.equal(torch.get_rng_state(), drawn), "a random number was drawn"
warm = {name: len(loop.signatures) for name, loop in loops.items()}
assert len(warm) == 10 and all(warm.values()) and "torch._dynamo" in sys.modules, warm

from luthier.adapters.lora import apply_lora
from luthier.config.adapter import AdapterSpec
from luthier.config.train import TrainSpec
from luthier.data.pack import epoch_batches, make_shared_batch
from luthier.engine.loop import train
from luthier.losses.sft import sft_loss_sum
from luthier.models.load import load_model
from tests.engine.small import rows
from tests.tiny import make_tiny_base

folder = Path(sys.argv[1])
model = load_model(make_tiny_base(folder / "base"))
apply_lora(model, AdapterSpec(), seed=0)
spec = TrainSpec(sequence_len=64, micro_batch_tokens=64, max_steps=1)
train(model, sft_loss_sum, spec, train_set=rows(4), dev_set=None, make_batch=make_shared_batch,
      plan_epoch=epoch_batches, run_dir=folder / "run")
assert warm == {name: len(loop.signatures) for name, loop in loops.items()}, "the step fetched another variant"
"""


@pytest.mark.slow
@pytest.mark.skipif(jit.numba is None, reason="numba has no wheel for this platform")
def test_the_first_step_fetches_nothing_more(tmp_path):
    done = subprocess.run([sys.executable, "-c", FIRST_STEP, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_fails_in_it_is_left_to_the_run(monkeypatch):
    """Here: an optimizer that cannot be made."""

    def refuse(*_):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(warm_up, "make_adamw", refuse)
    warm_up.start_warm_up().join()
    with pytest.raises(RuntimeError, match="no such kernel"):
        warm_up.warm_up()
    assert torch.is_grad_enabled()
