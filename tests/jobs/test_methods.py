"""Every method as one word in the YAML: train, build and the built model read back; what cannot be is refused first."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file

from luthier.config.adapter_methods import FACTS
from luthier.errors import ConfigError
from tests.jobs.test_run import only
from tests.jobs.toy import make_texts, write_project

SETTINGS = {"layers": ("adapter.top_layers=1",), "vera": ("adapter.lora_r=64",)}
SETTINGS["longlora"] = ("adapter.longlora_group=64",)
SETTINGS |= {name: ("ship.formats=[]",) for name, facts in FACTS.items() if not facts.mergeable}
RATES = {
    "full": "1e-3",
    "galore": "3e-3",
    "longlora": "1e-3",
    "layers": "1e-3",
    "head": "3e-3",
    "ia3": "3e-2",
    "p_tuning": "1e-3",
}
RATES |= {"prompt_tuning": "1e-1", "prefix_tuning": "3e-2"}


def overrides(method: str) -> list[str]:
    values = [f"adapter.method={method}", "train.num_epochs=1", *SETTINGS.get(method, ())]
    values += ["model.dtype=nf4"] if FACTS[method].needs_nf4 else []
    values += [f"train.learning_rate={RATES[method]}"] if method in RATES else []
    return [part for value in values for part in ("--set", value)]


def every_method() -> list:
    """All of them; those that differ from another one by a factor or a start only in the long run of tests."""
    slow = {"rslora", "olora", "qdora", "lora_plus", "lora", "eva", "lora_fa"}
    return [pytest.param(method, marks=pytest.mark.slow if method in slow else ()) for method in sorted(FACTS)]


@pytest.mark.parametrize("method", every_method())
def test_trains_builds_and_learns(tmp_path, toy_base, luthier, method):
    path = write_project(tmp_path, toy_base, make_texts(160, seed=7))
    result = luthier("build", "-c", path, *overrides(method))
    assert result.exit_code == 0, result.output
    (train,) = (tmp_path / "runs").glob("train-*")
    facts = json.loads((train / "manifest.json").read_text())["facts"]
    assert f"({method})" in result.output and facts["num_trainable"] > 0
    records = [json.loads(line) for line in (train / "metrics.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if record["kind"] == "train"]
    assert facts["dev_loss"] < losses[0]
    artefacts = json.loads((only(tmp_path / "runs", "build-*") / "artefacts.json").read_text())
    reasons = [(a["name"], r["reasons"]) for a in artefacts for r in a["records"] if not r["passed"]]
    assert not reasons
    stored = load_file(train / "adapter" / "adapter_model.safetensors")
    if method == "longlora":  # it trains the embedding, which PEFT stores under both names where the head is tied to it
        stored = {name: x for name, x in stored.items() if "lm_head" not in name}
    trained = 4 * facts["num_trainable"]
    factor = 2.1 if method in ("pissa", "olora", "lora_fa") else 1.1
    assert sum(x.nbytes for x in stored.values()) <= factor * trained


REFUSED = [
    (("adapter.method=qlora",), "qlora trains on a base in 4 bits", "model.dtype: nf4"),
    (("adapter.method=full", "model.dtype=int8"), "full trains weights of the base itself", "float32"),
    (("adapter.lora_r=65",), "65 is above the width", "use at most"),
    (("adapter.lora_target_modules=[q_prj]",), "'q_prj' matches no linear layer", "nearest is q_proj"),
    (("adapter.method=layers",), "no k is given", "top_layers"),
    (("adapter.method=galore", "adapter.lora_r=65"), "65 is above the width 32", "use at most 32"),
    (("adapter.method=galore", "model.dtype=bfloat16"), "galore trains weights of the base itself", "float32"),
    (("adapter.method=layers", "adapter.top_layers=9"), "has 2 layers", "at most 2"),
    (("adapter.method=vera", "adapter.rank_pattern={q_proj: 2}"), "no rank of its own", "adapter.method: lora"),
    (("adapter.rank_pattern={q_prj: 2}",), "'q_prj' matches no adapted layer", "nearest is q_proj"),
    (("adapter.method=full", "adapter.modules_to_save=[norms]"), "no parts beside", "leave it out"),
    (("adapter.method=adalora", "adapter.adalora_end=0.05"), "is not above adalora_start", "adalora_end"),
    (("adapter.method=ia3", "adapter.lora_dropout=0.1"), "ia3 drops nothing", "leave it out"),
    (("adapter.method=p_tuning", "adapter.prompt_init_text=x"), "does not start as a text", "prompt_tuning"),
    (("adapter.method=prompt_tuning", "adapter.top_layers=1"), "no layers to choose", "leave top_layers out"),
    (("adapter.method=pfeiffer", "adapter.lora_target_modules=[q_proj]"), "places of its own", "leave it out"),
    (("adapter.method=longlora",), "is not below train.sequence_len 128", "longlora_group: 32"),
    (("adapter.modules_to_save=[norms]", "model.dtype=bfloat16"), "rounded away", "float32"),
]


@pytest.mark.parametrize(("settings", "message", "hint"), REFUSED, ids=[message for _, message, _ in REFUSED])
def test_what_cannot_be_is_refused_before_anything_loads(tmp_path, toy_base, luthier, settings, message, hint):
    path = write_project(tmp_path, toy_base, make_texts(40, seed=7))
    result = luthier("train", "-c", path, *[part for one in settings for part in ("--set", one)])
    assert isinstance(result.exception, ConfigError) and result.exception.exit_code == 2
    assert message in str(result.exception) and hint in result.exception.hint
    assert not (tmp_path / "runs").exists()


def test_a_prompt_is_judged_and_published_as_an_adapter(tmp_path, toy_base, luthier):
    """No merge, no GGUF: refused before anything is read, and the config that is named goes all the way."""
    path = write_project(tmp_path, toy_base, make_texts(160, seed=7))
    refused = luthier("run", "-c", path, "--set", "adapter.method=prefix_tuning")
    assert isinstance(refused.exception, ConfigError) and "cannot be merged" in str(refused.exception)
    assert "ship.formats: []" in refused.exception.hint and not (tmp_path / "runs").exists()
    values = ("adapter.method=prefix_tuning", "ship.formats=[]", "train.learning_rate=3e-2", "train.num_epochs=6")
    result = luthier("run", "-c", path, *[part for value in values for part in ("--set", value)])
    built = only(tmp_path / "runs", "build-*")
    (artefact,) = json.loads((built / "artefacts.json").read_text())
    assert artefact["name"] == "adapter" and artefact["records"][0]["reader"] == "PEFT"
    assert result.exit_code == 0, result.output
    published = only(tmp_path / "runs", "published-*")
    names = {p.name for p in published.iterdir()}
    assert "adapter" in names and "merged" not in names and not any(name.endswith(".gguf") for name in names)
    text, label = make_texts(160, seed=7)[0]
    talk = luthier("chat", "-c", path, *[part for v in values for part in ("--set", v)], "--message", text)
    assert talk.exit_code == 0 and talk.output.strip() == label


def test_a_run_with_a_trained_head_of_a_tied_base_ships_untied(tmp_path, toy_base, luthier):
    """The merged folder and the GGUF hold a head of their own, and the embedding is the base's."""
    path = write_project(tmp_path, toy_base, make_texts(160, seed=7))
    result = luthier("build", "-c", path, *overrides("head"))
    assert result.exit_code == 0, result.output
    merged = only(tmp_path / "runs", "build-*") / "merged"
    weights, base = load_file(merged / "model.safetensors"), load_file(toy_base / "model.safetensors")
    assert not json.loads((merged / "config.json").read_text())["tie_word_embeddings"]
    assert "lm_head.weight" not in base and not weights["lm_head.weight"].equal(weights["model.embed_tokens.weight"])
    assert all(weights[name].equal(base[name]) for name in base)
