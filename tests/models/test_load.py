"""Loading: what is complete loads as transformers would, what is not is refused with a reason."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from luthier.errors import BaseModelError
from luthier.models.decoder import Decoder
from luthier.models.load import load_model
from luthier.models.other import TransformersModel
from luthier.models.rope import RopeSpec, inverse_frequencies
from luthier.models.spec import NotOurs, spec_from_config
from tests.models.folders import MATRIX, documents, make_folder, oracle, oracle_logits, pack, relative


def logits(model, docs):
    with torch.no_grad():
        return model.head(model.hidden(pack(docs, [list(range(len(d))) for d in docs])))


@pytest.fixture
def folder(tmp_path, matrix_folder):
    """A private copy of a tiny tied Llama."""
    return shutil.copytree(matrix_folder("llama-gqa-tied"), tmp_path / "base")


def edit_config(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v != "DROP"}))


def edit_weights(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file({k: v.contiguous().clone() for k, v in tensors.items()}, path, metadata={"format": "pt"})


def test_shards_load_as_one_file(tmp_path, matrix_folder):
    docs = documents([7, 12])
    whole = load_model(matrix_folder("llama-biases"))
    sharded = make_folder(tmp_path / "sharded", "llama-biases", max_shard_size="60KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    assert torch.equal(logits(load_model(sharded), docs), logits(whole, docs))
    assert whole.num_parameters == oracle(matrix_folder("llama-biases")).num_parameters()
    next(iter(sharded.glob("*-00002-*"))).unlink()
    with pytest.raises(BaseModelError, match="shard missing"):
        load_model(sharded)


def test_loading_does_not_bring_in_the_compiler_of_torch(folder):
    """Its import is a second of every start; drawing a number on the meta device is enough to cause it."""
    code = "import sys; from luthier.models.load import load_model; load_model(sys.argv[1]); "
    code += "print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_tied_head(folder):
    model = load_model(folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.num_parameters == oracle(folder).num_parameters()
    docs = documents([6])
    before = logits(model, docs)
    edit_weights(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"]}))
    assert torch.equal(logits(load_model(folder), docs), before)
    edit_weights(folder, lambda t: t.pop("model.embed_tokens.weight"))
    assert torch.equal(logits(load_model(folder), docs), before)


@pytest.mark.known_bug("TE1")
def test_two_different_heads_stay_apart_as_in_transformers(folder):
    edit_weights(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] * 2}))
    model, docs = load_model(folder), documents([6])
    assert "kept apart" in model.note
    with torch.no_grad():
        assert relative(logits(model, docs), oracle_logits(oracle(folder), docs)[0]) < 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), "1 missing tensor"),
        (lambda t: t.update(surplus=torch.zeros(1)), "1 unexpected tensor"),
        (lambda t: t.update({"model.norm.weight": torch.zeros(3)}), "shape"),
        (lambda t: t.update({"model.norm.weight": torch.zeros(48, dtype=torch.int8)}), "int8"),
        (lambda t: t["model.norm.weight"].view(-1)[3:5].fill_(float("nan")), "model.norm.weight holds 2 of 48 numbers"),
        (lambda t: t["model.embed_tokens.weight"][7, 0].fill_(-float("inf")), "embed_tokens.weight holds 1 of"),
    ],
)
def test_misfitting_weights_are_refused(folder, change, message):
    edit_weights(folder, change)
    with pytest.raises(BaseModelError, match=message) as error:
        load_model(folder)
    assert error.value.hint


def test_recomputed_buffers_of_old_llama_folders_are_ignored(folder):
    edit_weights(folder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
    load_model(folder)


def test_broken_folders_are_refused(folder, tmp_path):
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    for torn in (data[:-10], data[:4], b""):
        weights.write_bytes(torn)
        with pytest.raises(BaseModelError, match="torn"):
            load_model(folder)
    weights.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(BaseModelError, match="pickled"):
        load_model(folder)
    index = {"weight_map": {"a": "../elsewhere.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BaseModelError, match="plain safetensors file name"):
        load_model(folder)
    with pytest.raises(BaseModelError, match="not found"):
        load_model(tmp_path / "nothing")
    edit_config(folder, quantization_config={"quant_method": "gptq"})
    with pytest.raises(BaseModelError, match="gptq"):
        load_model(folder)


def test_config_of_transformers_4_reads_the_same(folder):
    for scaling in (
        {"type": "linear", "factor": 2.0},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        {"rope_type": "yarn", "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 1.2, "truncate": False},
        None,
    ):
        edit_config(folder, rope_parameters="DROP", rope_theta=500.0, rope_scaling=scaling, head_dim="DROP")
        model, docs = load_model(folder), documents([40])
        assert isinstance(model, Decoder) and model.spec.rope.theta == 500.0
        with torch.no_grad():
            assert relative(logits(model, docs), oracle_logits(oracle(folder), docs)[0]) < 1e-5


@pytest.mark.parametrize("stem", ["Llama", "Mistral", "Qwen2", "Gemma2", "Phi3"])
def test_absent_keys_default_as_in_transformers(stem):
    """Only the shapes are given: everything else must come out as transformers' config class has it."""
    shapes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48}
    shapes |= {"num_hidden_layers": 3, "num_attention_heads": 32}
    config = getattr(transformers, f"{stem}Config")(**shapes)
    bare = spec_from_config({"model_type": config.model_type, **shapes})
    assert bare == spec_from_config(config.to_dict())


def test_unknown_settings_take_the_transformers_path(folder):
    docs = documents([40, 6])
    for changes in (
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
        {"attention_dropout": 0.1},
    ):
        edit_config(folder, **({"attention_dropout": 0.0} | changes))
        model = load_model(folder)
        assert isinstance(model, TransformersModel) and "slower" in model.note
        with torch.no_grad():
            want = torch.cat(oracle_logits(oracle(folder), docs))
            assert relative(logits(model, docs), want) < 1e-5
    edit_config(folder, attention_dropout=0.0, rope_parameters={"rope_type": "of tomorrow", "rope_theta": 1e4})
    with pytest.raises(NotOurs, match="of tomorrow"):
        spec_from_config(json.loads((folder / "config.json").read_text()))


def test_every_scaling_has_finite_frequencies():
    for name in MATRIX:
        rope = MATRIX[name][1].get("rope_parameters", {"rope_type": "default"})
        assert rope["rope_type"] in ("default", "linear", "llama3", "yarn", "longrope")
    assert torch.isfinite(inverse_frequencies(RopeSpec("default", 1e4, 8, 64))).all()


def test_dtype_auto_and_unknown(folder):
    edit_config(folder, dtype="bfloat16")
    assert load_model(folder, dtype="auto").dtype == torch.bfloat16
    with pytest.raises(BaseModelError, match="int4"):
        load_model(folder, dtype="int4")
