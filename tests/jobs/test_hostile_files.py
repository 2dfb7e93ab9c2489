"""Hostile model folders through the CLI: pickles that run code are refused by name, code beside a base never runs."""

import json
import pickle
import re
import shutil

import pytest

from luthier.adapters.stored import load_adapter
from luthier.errors import ArtifactError, BaseModelError
from luthier.models.load import load_model
from tests.jobs.toy import make_texts, write_project
from tests.store.test_pickles import EVIL, SYSTEM


@pytest.fixture
def project(tmp_path, tiny_base):
    base = shutil.copytree(tiny_base, tmp_path / "base")
    return write_project(tmp_path, base, make_texts(60, seed=3))


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "optimizer.pt", "training_args.bin", "a.ckpt", "a.pkl", "notes.txt"]
)
def test_a_pickle_that_would_run_code_is_refused_by_name_in_a_base(project, luthier, name):
    (project.parent / "base" / name).write_bytes(pickle.dumps(EVIL, protocol=4))
    result = luthier("prepare", "-c", project)
    assert isinstance(result.exception, BaseModelError) and result.exception.exit_code == 2
    assert name in str(result.exception) and SYSTEM in str(result.exception)


def test_pickled_weights_alone_are_refused_with_the_way_to_convert(project, luthier):
    base = project.parent / "base"
    (base / "model.safetensors").unlink()
    (base / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": 1}))
    error = luthier("prepare", "-c", project).exception
    assert isinstance(error, BaseModelError) and "pytorch_model.bin" in str(error) and "save_pretrained" in error.hint
    (base / "pytorch_model.bin").write_bytes(pickle.dumps(EVIL))
    assert SYSTEM in str(luthier("prepare", "-c", project).exception)


def test_a_pickle_in_an_adapter_folder_is_refused(project, luthier, tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8}))
    (folder / "adapter_model.bin").write_bytes(pickle.dumps({"weight": 1}))
    model = load_model(project.parent / "base")
    with pytest.raises(ArtifactError, match=r"adapter_model\.bin: pickled weights") as caught:
        load_adapter(model, folder)
    assert "save_pretrained" in caught.value.hint
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(EVIL))
    with pytest.raises(ArtifactError, match=re.escape(SYSTEM)):
        load_adapter(model, folder)


def test_code_beside_a_base_never_runs_and_is_not_shipped(project, luthier):
    """auto_map wherever transformers reads it from, and a file for each: none is imported, none is copied."""
    base, canary = project.parent / "base", project.parent / "canary"
    code = f"open({str(canary)!r}, 'w').close()\n"
    for module in ("modeling_x", "configuration_x", "tokenization_x"):
        (base / f"{module}.py").write_text(code)
    for name, classes in (
        ("tokenizer_config.json", {"AutoTokenizer": ["tokenization_x.T", None]}),
        ("config.json", {"AutoConfig": "configuration_x.C", "AutoModelForCausalLM": "modeling_x.M"}),
    ):
        path = base / name
        path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": classes}))
    quick = ("--set", "train.max_steps=1", "--set", "evaluate.max_new_tokens=1")
    result = luthier("build", "-c", project, *quick)
    assert result.exit_code == 0, (result.output, result.exception)
    assert luthier("evaluate", "-c", project, *quick).exit_code in (10, 11, 12)
    (merged,) = project.parent.glob("runs/build-*/merged")
    assert not canary.exists() and not list(merged.glob("*.py")) and (merged / "tokenizer.json").is_file()
    assert (merged / "model.safetensors").is_file()
