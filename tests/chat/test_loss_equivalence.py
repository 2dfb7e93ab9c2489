"""P9: the training loss is the sum of -log p(answer + stop | served prompt), packed or not. P10: rows are isolated.

On a tiny random model, with luthier's packed batches, and transformers as a serving path that knows nothing of them:
this proves mask, shift, collation, BOS, packing and positions together.
"""

import dataclasses

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier.bases.tokenizer import Tokenizer
from luthier.chat.codec import ChatCodec
from luthier.data.pack import make_batch
from luthier.models.load import load_model
from luthier.models.sampler import LocalSampler
from luthier.types import Row
from tests.chat.build import chat
from tests.tiny import make_tiny_base

torch.set_num_threads(1)

ROWS = [
    Row(id="1", messages=chat("What is it?", "It is four.", system="Be brief.")),
    Row(id="2", messages=chat("a b c", "d e", "f?", "g h i j")),
    Row(id="3", messages=chat("one two three <|im_end|> four", "yes <|im_end|> no")),
]


@pytest.fixture(scope="module", params=["llama", "mistral", "gemma2"])
def setup(request, tmp_path_factory):
    folder = make_tiny_base(tmp_path_factory.mktemp("p9") / "base", request.param)
    codec = ChatCodec(Tokenizer.load(folder))
    return (
        codec,
        load_model(folder),
        AutoModelForCausalLM.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )


def token_losses(model, batch):
    logits = model.head(model.hidden(batch)).float()
    return torch.nn.functional.cross_entropy(logits, torch.as_tensor(batch.targets_K), reduction="none")


def served_loss(codec, theirs, messages, turn):
    """-log p of answer + stop, token by token from transformers' logits after the prompt that a server renders."""
    prompt = codec.prompt_ids(messages[:turn])
    answer = [*codec.tokenizer.encode(messages[turn]["content"], specials=False), codec.tokenizer.eos_id]
    with torch.no_grad():
        logits = theirs(torch.tensor([prompt + answer]), use_cache=False).logits[0].float()
    log_p = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return -log_p.gather(1, torch.tensor(answer)[:, None]).sum().item()


@pytest.mark.known_bug("CX")
def test_p9_training_loss_is_the_serving_loss(setup):
    codec, model, theirs, their_tokenizer = setup
    sampler = LocalSampler(
        model,
        encode=codec.prompt_ids,
        decode=codec.parse,
        stop_ids=codec.stop_ids,
        name="tiny",
        encode_answer=codec.encode_answer,
    )
    encoded = [e for row in ROWS for e in codec.encode(row)]
    served = [
        sum(served_loss(codec, theirs, row.messages, i) for i, m in enumerate(row.messages) if m["role"] == "assistant")
        for row in ROWS
    ]
    scored = [
        -sum(
            sum(sampler.score([(row.messages[:i], m["content"])])[0])
            for i, m in enumerate(row.messages)
            if m["role"] == "assistant"
        )
        for row in ROWS
    ]
    unpacked = [token_losses(model, make_batch([e])).sum().item() for e in encoded]
    packed = token_losses(model, make_batch(encoded))
    assert unpacked == pytest.approx(served, rel=1e-4)
    assert scored == pytest.approx(served, rel=1e-4)
    bounds = np.cumsum([sum(e.trained) for e in encoded])[:-1]
    assert [part.sum().item() for part in packed.tensor_split(bounds.tolist())] == pytest.approx(served, rel=1e-4)
    plain = ROWS[0].messages[:-1]
    theirs_ids = their_tokenizer.apply_chat_template(list(plain), add_generation_prompt=True, return_dict=False)
    assert codec.prompt_ids(plain) == list(theirs_ids)


@pytest.mark.known_bug("PK1")
def test_p10_untrained_labels_and_neighbours_change_nothing(setup):
    codec, model, _, _ = setup
    first, second = (codec.encode(row)[0] for row in ROWS[:2])
    assert not first.trained[-1], "ChatML writes an untrained newline behind the stop token"
    relabelled = dataclasses.replace(first, ids=(*first.ids[:-1], 77))
    other = dataclasses.replace(second, ids=tuple(77 for _ in second.ids))
    num = sum(first.trained)

    def loss_and_gradient(*rows):
        model.zero_grad()
        place = next(i for i, row in enumerate(rows) if row.row_id == first.row_id)
        start = sum(sum(row.trained) for row in rows[:place])
        losses = token_losses(model, make_batch(rows))[start : start + num]
        losses.sum().backward()
        return losses.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    base_losses, base_gradient = loss_and_gradient(first, second)
    # Behind its neighbour as well: what comes later is hidden by causality alone.
    for rows in ((relabelled, second), (first, other), (first,), (second, first), (other, first)):
        losses, gradient = loss_and_gradient(*rows)
        assert torch.allclose(losses, base_losses, rtol=1e-5, atol=1e-6)
        for name, value in base_gradient.items():
            assert torch.allclose(gradient[name], value, rtol=1e-3, atol=1e-6), name
