"""What the other dtypes may change: the loss curve of a real base, against float32 (the bounds of docs/speed.md)."""

import json

import pytest
import torch

from luthier.adapters.lora import apply_lora
from luthier.adapters.peft_files import save_adapter
from luthier.bases.tokenizer import Tokenizer
from luthier.chat.codec import ChatCodec
from luthier.config.adapter import AdapterSpec
from luthier.config.train import TrainSpec
from luthier.data.pack import epoch_batches, make_batch
from luthier.engine.evaluation import dev_figures
from luthier.engine.loop import train
from luthier.losses.sft import sft_loss_sum
from luthier.models.int8 import load_frozen, to_int8
from luthier.models.load import load_model
from luthier.ship.merge import merge
from luthier.types import Row
from tests.engine.small import rows as small_rows
from tests.ship.bases import sharp_base

# dtype -> how far the loss of a step, and the final dev loss, may be from float32's (docs/speed.md says the same)
BOUNDS = {"bfloat16": (0.02, 0.01), "int8": (0.06, 0.02)}
COLOURS, THINGS = ("red", "green", "blue", "white"), ("door", "boat", "lamp", "coat", "cup", "bag")


def _rows(codec):
    pairs = [(colour, thing) for colour in COLOURS for thing in THINGS]
    made = []
    for number, (colour, thing) in enumerate(pairs):
        turns = (
            {"role": "user", "content": f"The {thing} that I ordered is {colour}. What did I order?"},
            {"role": "assistant", "content": f'{{"item":"{thing}","colour":"{colour}"}}'},
        )
        made += codec.encode(Row(id=f"row-{number}", messages=turns))
    return made


@pytest.fixture(scope="module")
def curve(smollm2, tmp_path_factory):
    """dtype -> (loss of every step, final dev loss) of the same 8 steps."""
    rows = _rows(ChatCodec(Tokenizer.load(smollm2)))
    spec = TrainSpec(
        micro_batch_tokens=160, num_epochs=2, max_steps=8, learning_rate=2e-4, warmup_ratio=0.25, sequence_len=64
    )

    def of(dtype):
        model = load_model(smollm2, dtype="float32" if dtype == "int8" else dtype)
        if dtype == "int8":
            assert to_int8(model, make_batch(rows[:8]))
        apply_lora(model, AdapterSpec(lora_r=8), seed=0)
        folder = tmp_path_factory.mktemp(dtype)
        result = train(
            model, sft_loss_sum, spec, train_set=rows[:18], dev_set=rows[18:], make_batch=make_batch,
            plan_epoch=epoch_batches, run_dir=folder, guard={},
        )  # fmt: skip
        log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [line["loss"] for line in log if line["kind"] == "train"], result.history[-1]["loss"]

    reference = of("float32")
    return lambda dtype: (of(dtype), reference)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_a_faster_dtype_learns_the_same(curve, dtype):
    """Every step's loss and the final dev loss within the dtype's bounds, on a curve that falls by a fifth."""
    step_bound, dev_bound = BOUNDS[dtype]
    (losses, dev), (expected, expected_dev) = curve(dtype)
    assert expected[-1] < 0.8 * expected[0]
    assert losses != expected

    for got, wanted in zip(losses, expected, strict=True):
        assert abs(got / wanted - 1) < step_bound
    assert abs(dev / expected_dev - 1) < dev_bound


@pytest.mark.known_bug("MG1")
def test_an_adapter_trained_on_int8_is_as_good_on_the_float32_weights_it_ships_with(tmp_path):
    """What is merged is W + s B A of the float32 W, not of the rounded one that was trained on: both dev losses are
    taken, the gap is small beside what was learnt, and the adapter really saw other weights.
    """
    base = sharp_base(tmp_path / "base")
    learnt, dev = small_rows(24), small_rows(24)
    sample, cpu = make_batch(learnt[:8]), torch.device("cpu")
    model = load_frozen(base, dtype="int8", sample=sample)
    assert model.note == ""

    def loss_of(some):
        return dev_figures(some, sft_loss_sum, dev, [range(24)], make_batch, cpu, lambda: False)["loss"]

    untrained = loss_of(model)
    adapted = apply_lora(model, AdapterSpec(lora_r=4), seed=0)
    train(
        model, sft_loss_sum, TrainSpec(micro_batch_tokens=160, num_epochs=6, learning_rate=1e-2), train_set=learnt,
        dev_set=None, make_batch=make_batch, plan_epoch=epoch_batches, run_dir=tmp_path / "run",
    )  # fmt: skip
    trained_on = loss_of(model)
    save_adapter(adapted, tmp_path / "adapter", "tiny")
    merge(base, tmp_path / "adapter", tmp_path / "merged")
    shipped = loss_of(load_model(tmp_path / "merged"))
    assert trained_on != shipped and trained_on < 0.7 * untrained
    assert abs(shipped - trained_on) < 0.05 * (untrained - trained_on)
