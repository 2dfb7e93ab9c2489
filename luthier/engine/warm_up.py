"""What a first step needs beside its own sums, fetched by a thread while the weights are being read.

The kernels' machine code is read from its files at their first call, and torch's optimizers import its whole compiler
when the first one is made: 1.4 s together, of which reading weights leaves the processor free. So a decoder of two
layers goes through forward, backward and update. It holds constants: no random number is drawn, so a run computes the
same numbers with and without it.
"""

from __future__ import annotations

import logging
import threading

import torch

from luthier.config.train import TrainSpec
from luthier.engine.optimizers import make_adamw
from luthier.engine.step import backward_of
from luthier.losses.sft import sft_loss_sum
from luthier.models.decoder import Decoder
from luthier.models.spec import spec_from_config
from luthier.types import Batch

log = logging.getLogger(__name__)

_CONFIG = {
    "model_type": "llama", "vocab_size": 16, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 8, "rms_norm_eps": 1e-5,
}  # fmt: skip


def start_warm_up() -> threading.Thread:
    """Starts it; join before the first random draw that counts. What fails in it is for the run itself to meet."""
    # Not a daemon: an interpreter that ends under it aborts the process (SIGTERM while weights are read).
    thread = threading.Thread(target=_quietly, name="warm-up")
    thread.start()
    return thread


def _quietly() -> None:
    try:
        warm_up()
    except Exception as error:  # whatever it is, the first step says it better
        log.debug("warm-up: %s", error)


def warm_up() -> None:
    """One training step of a decoder of two layers (the last one is pruned) in float32 on the CPU."""
    with torch.device("meta"):
        model = Decoder(spec_from_config(_CONFIG), {})
    weights = {name: torch.full(p.shape, 0.1) for name, p in model.named_parameters()}
    model.load_state_dict(weights, strict=False, assign=True)
    model.requires_grad_(False)
    model.model.embed_tokens.weight.requires_grad_(True)
    tokens, ends = torch.arange(4), torch.tensor([0, 4])
    batch = Batch(tokens, tokens, ends, keep_K=tokens[1:3], targets_K=tokens[2:])
    backward_of(model, sft_loss_sum, batch, 1.0)
    make_adamw([{"params": list(model.parameters())}], TrainSpec()).step()
