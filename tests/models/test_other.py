"""The transformers path: same interface, same numbers, adapters can replace its modules."""

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
)

from luthier.models.load import load_model
from luthier.models.other import TransformersModel
from luthier.models.sampler import LocalSampler
from tests.models.folders import documents, oracle, oracle_logits, pack, relative

_SHAPES = {"vocab_size": 101, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
_SHAPES |= {"num_attention_heads": 4, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


@pytest.fixture(scope="module", params=["gpt-neox", "granite"])
def folder(request, tmp_path_factory):
    """GPT-NeoX (other module names) and Granite (logits scaled after the head)."""
    torch.manual_seed(0)
    if request.param == "granite":
        model = GraniteForCausalLM(GraniteConfig(**_SHAPES, num_key_value_heads=2, logits_scaling=3.0))
    else:
        model = GPTNeoXForCausalLM(GPTNeoXConfig(**_SHAPES))
    path = tmp_path_factory.mktemp("other") / request.param
    model.save_pretrained(path)
    return path


@pytest.mark.known_bug("PK1", "CE5")
def test_equals_transformers(folder):
    model, reference, docs = load_model(folder), oracle(folder), documents([9, 4, 13])
    assert isinstance(model, TransformersModel) and "model type" in model.note
    keep = [[2, 3], [], [0, 5, 12]]
    batch = pack(docs, keep)
    targets = torch.as_tensor(batch.targets_K.astype("int64"))
    got = model.head(model.hidden(batch))
    want = torch.cat([x[k] for x, k in zip(oracle_logits(reference, docs), keep, strict=True)])
    assert relative(got.detach(), want.detach()) < 1e-5
    F.cross_entropy(got, targets).backward()
    F.cross_entropy(want, targets).backward()
    for (name, a), (other_name, b) in zip(model.named_parameters(), reference.named_parameters(), strict=True):
        assert name == other_name and relative(a.grad, b.grad) < 1e-5
    assert model.num_parameters == reference.num_parameters()


@pytest.mark.known_bug("CE4")
def test_every_replaced_linear_is_called(folder):
    """Also the output head, which hangs on the model itself."""
    docs = documents([5])
    for name in load_model(folder).linear_modules():
        model = load_model(folder)
        before, module = model.hidden(pack(docs)).detach(), model.get_submodule(name)
        replaced = torch.nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, replaced)
        assert not torch.equal(model.hidden(pack(docs)).detach(), before), name


def test_sampler_runs_it(folder):
    model, reference = load_model(folder), oracle(folder)
    prompts = [[5] * 9 + d for d in documents([4, 11, 7])]
    sampler = LocalSampler(model, encode=list, decode=str, stop_ids={2}, name="other", batch_size=2)
    for prompt, got in zip(prompts, sampler.sample_ids(prompts, max_new_tokens=6), strict=True):
        want = reference.generate(torch.tensor([prompt]), max_new_tokens=6, do_sample=False)[0, len(prompt) :]
        assert list(got.ids) == want.tolist()


@pytest.mark.known_bug("PK4")
def test_a_layer_with_a_state_does_not_hand_it_to_the_next_document(tmp_path):
    """LFM2's short convolutions reach back over tokens as attention masks do not forbid: packed rows equal rows by
    themselves, and another first document changes no bit of the second one.
    """
    torch.manual_seed(0)
    config = Lfm2Config(**_SHAPES, num_key_value_heads=2, layer_types=["conv", "full_attention"])
    Lfm2ForCausalLM(config).save_pretrained(tmp_path)
    model, docs = load_model(tmp_path), documents([9, 4, 13])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
        every = [list(range(len(d))) for d in docs]
        packed = model.hidden(pack(docs, every)).split([len(d) for d in docs])
        other = model.hidden(pack([documents([9], seed=5)[0], *docs[1:]], every)).split([len(d) for d in docs])
        for place, doc in enumerate(docs):
            alone = model.inner(input_ids=torch.tensor([doc]), use_cache=False).logits[0]
            assert relative(packed[place], alone) < 1e-5
            assert torch.equal(packed[place], other[place]) == (place != 0)
