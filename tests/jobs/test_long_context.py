"""`model.rope_scaling` through the verbs: everything that reads the base sees the longer context, and nothing else is
taken for it."""

from __future__ import annotations

import json
import shutil

import gguf
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier.errors import ArtifactError, ConfigError
from luthier.jobs.verify import BROKEN
from tests.jobs.test_run import only
from tests.jobs.toy import make_texts, write_project

YARN = ("--set", "model.rope_scaling={rope_type: yarn, factor: 8}")
WINDOW = 16  # rows have some 30 tokens


@pytest.fixture(scope="module")
def short_base(tmp_path_factory, toy_base):
    """The toy base, said to have been made for 16 positions."""
    folder = tmp_path_factory.mktemp("short") / "base"
    shutil.copytree(toy_base, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": WINDOW}))
    return folder


@pytest.fixture(scope="module")
def stretched(tmp_path_factory, short_base, luthier):
    """A whole run on it that ships: (project file, result)."""
    folder = tmp_path_factory.mktemp("stretched")
    shutil.copytree(short_base, folder / "base")
    path = write_project(folder, "base", make_texts(500, seed=7))
    return path, luthier("run", "-c", path, *YARN)


def test_a_run_beyond_the_window_ships_what_says_so(stretched, luthier):
    path, result = stretched
    assert result.exit_code == 0, result.output
    assert "positions that this base was made for" not in result.output
    runs = path.parent / "runs"
    built, published = only(runs, "build-*"), only(runs, "published-*")
    config = json.loads((built / "merged" / "config.json").read_text())
    assert config["max_position_embeddings"] == 8 * WINDOW
    rope = config["rope_parameters"]
    assert (rope["rope_type"], rope["factor"], rope["original_max_position_embeddings"]) == ("yarn", 8.0, WINDOW)
    fields = {name: field.contents() for name, field in gguf.GGUFReader(built / "model-f16.gguf").fields.items()}
    assert fields["llama.rope.scaling.type"] == "yarn" and fields["llama.rope.scaling.factor"] == 8.0
    assert (fields["llama.context_length"], fields["llama.rope.scaling.original_context_length"]) == (128, WINDOW)
    records = [r for a in json.loads((built / "artefacts.json").read_text()) for r in a["records"]]
    assert {r["reader"] for r in records} == {"luthier", "llama.cpp"} and all(r["passed"] for r in records)
    card = (published / "README.md").read_text()
    assert "from_pretrained(" in card and "'rope_type': 'yarn'" in card
    again = luthier("run", "-c", path, *YARN)
    assert again.exit_code == 0 and again.output.count("unchanged, reusing") == 5


def test_the_published_adapter_on_the_plain_base_is_the_merged_model(stretched):
    """By PEFT and plain transformers alone, told what luthier.json of the adapter says."""
    folder = only(stretched[0].parent / "runs", "published-*")
    changes = json.loads((folder / "adapter" / "luthier.json").read_text())["base_config"]
    base = stretched[0].parent / "base"
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, **changes)
    model = PeftModel.from_pretrained(plain, folder / "adapter").eval()
    merged = AutoModelForCausalLM.from_pretrained(folder / "merged", dtype=torch.float32).eval()
    ids = AutoTokenizer.from_pretrained(folder / "merged")("red green " * 40, return_tensors="pt").input_ids[:, :100]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, merged(ids).logits, atol=1e-4, rtol=1e-4)


def test_the_adapter_is_refused_on_the_base_as_it_came(stretched, luthier, tmp_path):
    path, adapter = stretched[0], only(stretched[0].parent / "runs", "published-*") / "adapter"
    refused = luthier("evaluate", "-c", path, "--adapter", adapter, "--set", f"output_dir={tmp_path / 'runs'}")
    assert isinstance(refused.exception, ArtifactError)
    assert "trained on a base with max_position_embeddings: 128, and this one has 16" in str(refused.exception)
    assert "set section model" in refused.exception.hint


def test_the_chain_goes_back_to_the_base_as_it_came(stretched, luthier, tmp_path):
    folder = tmp_path / "project"
    shutil.copytree(stretched[0].parent, folder)
    whole = luthier("verify", folder / "runs", "--strict")
    assert whole.exit_code == 0, whole.output
    manifest = only(folder / "runs", "train-*") / "manifest.json"
    pin = json.loads(manifest.read_text())["provenance"]["base"]
    assert pin["changes"] == {"rope_scaling": {"rope_type": "yarn", "factor": 8.0}} and pin["name"] == "base"
    assert pin["made_from"]["config.json"] != pin["files"]["config.json"]
    config = folder / "base" / "config.json"
    config.write_text(
        config.read_text().replace(f'"max_position_embeddings": {WINDOW}', '"max_position_embeddings": 32')
    )
    broken = luthier("verify", folder / "runs", "--json")
    assert broken.exit_code == BROKEN
    wrong = {link["what"] for link in json.loads(broken.stdout)["links"] if link["status"] == "broken"}
    assert wrong and all(what.endswith("config.json") for what in wrong)


REFUSED = [
    ("model.rope_scaling={rope_type: dynamic, factor: 4}", "rope_type", ""),
    ("model.rope_scaling={factor: 1}", "factor", ""),
    ("model.rope_scaling={factor: 4}", "train.sequence_len 128 is above 64", "model.rope_scaling.factor: 8"),
]


@pytest.mark.parametrize("verb", ["train", "plan"])
@pytest.mark.parametrize(("setting", "message", "hint"), REFUSED, ids=["dynamic", "one", "too short"])
def test_what_cannot_be_is_refused_before_anything_loads(tmp_path, short_base, luthier, verb, setting, message, hint):
    path = write_project(tmp_path, short_base, make_texts(40, seed=7))
    result = luthier(verb, "-c", path, "--set", setting)
    assert isinstance(result.exception, ConfigError) and result.exception.exit_code == 2
    assert message in str(result.exception) and hint in (result.exception.hint or "")
    assert not (tmp_path / "runs").exists()


def test_a_server_has_the_base_as_it_came(tmp_path, short_base, luthier):
    path = write_project(tmp_path, short_base, make_texts(40, seed=7))
    settings = (
        "loss.kind=grpo",
        "rollouts={rewards: {exact_match: 1.0}, server: {url: 'http://127.0.0.1:9'}, max_new_tokens: 4}",
    )
    result = luthier("train", "-c", path, *YARN, *[part for one in settings for part in ("--set", one)])
    assert isinstance(result.exception, ConfigError) and "answers with the base as it came" in str(result.exception)


def test_plan_says_what_the_context_means(tmp_path, toy_base, short_base, luthier):
    def notes(base, setting):
        path = write_project(tmp_path / base.parent.name, base, make_texts(40, seed=7))
        result = luthier("plan", "-c", path, "--json", "--set", f"model.rope_scaling={setting}")
        return " ".join(json.loads(result.stdout)["notes"])

    assert "model.rope_scaling: {rope_type: yarn, factor: 8} stretches them" in notes(short_base, "null")
    assert "positions" not in notes(short_base, "{factor: 16}")
    assert "longer context is shipped without having been trained" in notes(toy_base, "{factor: 2}")
