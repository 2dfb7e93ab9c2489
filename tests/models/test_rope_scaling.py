"""A base that section `model` stretches, read by luthier's decoder and by plain transformers."""

import json

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from luthier.bases.derived import config_changes, derive_base
from luthier.bases.resolve import resolve_base
from luthier.config.model import ModelSpec
from luthier.errors import ConfigError
from luthier.models.decoder import Decoder
from luthier.models.load import load_model
from tests.models.folders import documents, oracle_logits, pack, relative
from tests.tiny import make_tiny_base

WINDOW, FACTOR = 32, 4.0
# What transformers is told, without luthier: its `dynamic` at factor 1 raises theta by the length of the row over the
# window, so that at four windows it is what `ntk` is at every length.
PLAIN = {
    "linear": {"rope_type": "linear", "factor": FACTOR},
    "ntk": {"rope_type": "dynamic", "factor": 1.0},
    "yarn": {"rope_type": "yarn", "factor": FACTOR, "original_max_position_embeddings": WINDOW},
    "llama3": {
        "rope_type": "llama3",
        "factor": FACTOR,
        "original_max_position_embeddings": WINDOW,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
}


def derived(folder, kind, factor=FACTOR, arch="llama", **settings):
    """(the base as it came, the stretched one)"""
    make_tiny_base(folder / "base", arch, **({"max_position_embeddings": WINDOW} | settings))
    base = resolve_base(str(folder / "base"), cache_dir=folder / "cache")
    model = ModelSpec(base="x", rope_scaling={"rope_type": kind, "factor": factor})
    return base, derive_base(base, model, folder / "cache")


@pytest.mark.parametrize("arch", ["llama", "gemma2"])
@pytest.mark.parametrize("kind", PLAIN)
def test_logits_and_gradients_beyond_the_window_equal_transformers(tmp_path, kind, arch):
    base, longer = derived(tmp_path, kind, arch=arch)
    # max_position_embeddings as the base has it: only `dynamic` looks at it, and it means the window of the base
    plain = AutoModelForCausalLM.from_pretrained(
        base.folder, dtype=torch.float32, rope_parameters={"rope_theta": 10_000.0} | PLAIN[kind]
    ).eval()
    model, docs = load_model(longer.folder), documents([int(WINDOW * FACTOR)])
    assert isinstance(model, Decoder)
    got = model.head(model.hidden(pack(docs, [list(range(len(docs[0])))])))
    (want,) = oracle_logits(plain, docs)
    (as_it_came,) = oracle_logits(AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32).eval(), docs)
    assert relative(got, want) < 1e-5 < 100 * relative(as_it_came, want)
    targets = torch.tensor([*docs[0][1:], 0])
    F.cross_entropy(got, targets).backward()
    F.cross_entropy(want, targets).backward()
    gradients = dict(model.named_parameters())
    for name, parameter in plain.named_parameters():
        assert relative(gradients[name].grad, parameter.grad) < 2e-5, name


@pytest.mark.parametrize("kind", PLAIN)
def test_the_named_changes_make_plain_transformers_the_same_base(tmp_path, kind):
    """What an adapter folder and the card tell: from_pretrained(source, **changes)."""
    base, longer = derived(tmp_path, kind)
    changes = config_changes(longer)
    assert set(changes) == {"rope_parameters", "max_position_embeddings"}
    docs = documents([100])
    plain = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32, **changes).eval()
    merged = AutoModelForCausalLM.from_pretrained(longer.folder, dtype=torch.float32).eval()
    assert plain.config.max_position_embeddings == 128 == merged.config.max_position_embeddings
    with torch.no_grad():
        assert torch.equal(oracle_logits(plain, docs)[0], oracle_logits(merged, docs)[0])


def test_a_base_that_is_stretched_already_is_stretched_on(tmp_path):
    own = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 8}
    _, twice = derived(tmp_path, "yarn", factor=2, rope_parameters=own)
    rope = load_model(twice.folder).spec.rope
    assert (rope.kind, rope.factor, rope.original_max) == ("yarn", 8.0, 8)
    with pytest.raises(ConfigError, match="stretched by yarn already") as refused:
        derived(tmp_path / "other", "linear", factor=2, rope_parameters=own)
    assert "rope_type: yarn, factor: 2" in refused.value.hint


def test_old_spellings_are_kept_beside_the_new_one(tmp_path):
    """A base that states rope_theta at the top is read by tools that know nothing else."""
    make_tiny_base(tmp_path / "base", max_position_embeddings=WINDOW)
    path = tmp_path / "base" / "config.json"
    config = json.loads(path.read_text())
    theta = config.pop("rope_parameters")["rope_theta"]
    path.write_text(json.dumps(config | {"rope_theta": theta, "rope_scaling": None}))
    base = resolve_base(str(tmp_path / "base"), cache_dir=tmp_path / "cache")
    for kind in PLAIN:
        model = ModelSpec(base="x", rope_scaling={"rope_type": kind, "factor": FACTOR})
        written = json.loads((derive_base(base, model, tmp_path / "cache").folder / "config.json").read_text())
        assert written["rope_theta"] == written["rope_parameters"]["rope_theta"]
        old = (written.get("rope_scaling") or {}).get("rope_type", "default")
        assert old == written["rope_parameters"]["rope_type"] == ("default" if kind == "ntk" else kind)


def test_the_folder_is_made_once_shares_the_weights_and_mends_itself(tmp_path):
    base, longer = derived(tmp_path, "yarn")
    weights = longer.folder / "model.safetensors"
    assert weights.samefile(base.folder / "model.safetensors") and longer.digest != base.digest
    before = (longer.folder / "config.json").stat().st_ino
    model = ModelSpec(base="x", rope_scaling={"rope_type": "yarn", "factor": FACTOR})
    assert derive_base(base, model, tmp_path / "cache") == longer
    assert (longer.folder / "config.json").stat().st_ino == before
    (longer.folder / "config.json").write_text("{}")
    assert derive_base(base, model, tmp_path / "cache").digest == longer.digest
    assert json.loads((base.folder / "config.json").read_text())["max_position_embeddings"] == WINDOW
    assert derive_base(base, ModelSpec(base="x"), tmp_path / "cache") is base


@pytest.mark.parametrize(
    ("arch", "kind", "settings", "message", "hint"),
    [
        ("phi3", "yarn", {}, "readers of phi3 refuse yarn", "rope_type: ntk"),
        (
            "llama",
            "yarn",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "stretched by dynamic already",
            "drop it",
        ),
    ],
)
def test_what_cannot_be_stretched_is_refused_before_anything_is_written(tmp_path, arch, kind, settings, message, hint):
    with pytest.raises(ConfigError, match=message) as refused:
        derived(tmp_path, kind, arch=arch, **settings)
    assert hint in refused.value.hint and not list(tmp_path.glob("cache/bases/derived-*"))
