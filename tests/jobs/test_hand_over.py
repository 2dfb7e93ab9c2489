"""What a base, a prompt and a cap mean for what is handed over: said before training, written into what goes out."""

import json
import shutil

import pytest

from luthier.errors import ArtifactError, ConfigError, TemplateError
from luthier.jobs import build as build_job
from tests.jobs.toy import make_texts, write_project
from tests.tiny import CHATML

SYSTEM = 'Judge the "words" of this text.'
QUICK = ("--set", "train.max_steps=1", "--set", "ship.parity_rows=2")


def only(folder, pattern):
    (found,) = folder.glob(pattern)
    return found


def changed(base, tmp_path, **config):
    """A copy of the base whose config.json says something else."""
    shutil.copytree(base, tmp_path / "base")
    path = tmp_path / "base" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return tmp_path / "base"


@pytest.mark.parametrize("verb", ["run", "build", "evaluate"])
def test_files_that_this_base_cannot_have_are_refused_before_training(tmp_path, tiny_base, luthier, verb):
    path = write_project(tmp_path, changed(tiny_base, tmp_path, model_type="gpt_neox"), make_texts(60, seed=3))
    refused = luthier(verb, "-c", path)
    assert isinstance(refused.exception, ConfigError) and refused.exception.exit_code == 2
    assert "ship.formats (gguf-f16): GGUF export does not know the architecture 'gpt_neox'" in str(refused.exception)
    assert "set ship.formats to []" in refused.exception.hint and not list((tmp_path / "runs").glob("*"))


def test_a_file_that_llama_cpp_refuses_is_withheld_and_the_rest_is_built(tmp_path, tiny_base, luthier, monkeypatch):
    def refuse(path, **_):
        raise ArtifactError(f"{path}: llama.cpp cannot load it (no reason given)")

    monkeypatch.setattr(build_job, "missing_reason", lambda: None)
    monkeypatch.setattr(build_job, "LlamaCpp", refuse)
    path = write_project(tmp_path, tiny_base, make_texts(60, seed=3))
    result = luthier("build", "-c", path, *QUICK)
    assert result.exit_code == 0, (result.output, result.exception)
    said = " ".join(result.output.split())
    assert (
        "equal to what was trained" in said
        and "withheld: parity was not checked; model-f16.gguf: llama.cpp cannot load it" in said
    )
    facts = json.loads((only(tmp_path / "runs", "build-*") / "manifest.json").read_text())["facts"]
    assert facts["artefacts"] == {"merged": True, "gguf-f16": False}


def test_rows_beyond_the_context_of_the_base_are_told(tmp_path, tiny_base, luthier):
    base = changed(tiny_base, tmp_path, max_position_embeddings=64)
    path = write_project(tmp_path, base, make_texts(60, seed=3))
    result = luthier("train", "-c", path, *QUICK)
    said = " ".join(result.output.split())
    assert result.exit_code == 0 and "train.sequence_len 128 is above the 64 positions that this base was made" in said
    shutil.rmtree(base)
    base = changed(tiny_base, tmp_path, max_position_embeddings=64, model_type="opt")
    refused = luthier("train", "-c", path, *QUICK)
    assert isinstance(refused.exception, ConfigError) and "train.sequence_len: 64" in refused.exception.hint


def test_a_cap_below_the_answers_is_said_before_training(tmp_path, tiny_base, luthier):
    path = write_project(tmp_path, tiny_base, make_texts(60, seed=3))
    result = luthier("run", "-c", path, *QUICK, "--set", "evaluate.max_new_tokens=1")
    said = " ".join(result.output.split())
    assert "21 of 21 reference answers of the test split have more than evaluate.max_new_tokens = 1 tokens" in said
    assert said.index("reference answers") < said.index("training on")
    assert "reference answers of the test" not in luthier("run", "-c", path, *QUICK).output


def test_the_published_folder_says_under_which_system_message_it_was_trained(tmp_path, tiny_base, luthier):
    """A random base learns one answer and ships under a loose policy; its Modelfile asks as training did."""
    path = write_project(tmp_path, tiny_base, make_texts(100, seed=7))
    loose = ("evaluate.alpha=0.4", "evaluate.min_effect=0", f"data.system={SYSTEM!r}", "evaluate.max_new_tokens=1")
    result = luthier("run", "-c", path, *(part for one in loose for part in ("--set", one)))
    assert result.exit_code == 0, (result.output, result.exception)
    published = only(tmp_path / "runs", "published-*")
    assert f'SYSTEM """{SYSTEM}"""' in (published / "Modelfile").read_text()
    assert f"```text\n{SYSTEM}\n```" in (published / "README.md").read_text()


def test_chat_asks_as_training_did(tmp_path, tiny_base, luthier):
    """The schema in words stands in every training row's system message; a template that wants one shows it."""
    base = changed(tiny_base, tmp_path)
    strict = "{% if messages[0]['role'] != 'system' %}{{ raise_exception('no schema') }}{% endif %}"
    (base / "chat_template.jinja").write_text(strict + CHATML)
    path = write_project(tmp_path / "project", base, make_texts(20, seed=3))
    schema = {"type": "object", "properties": {"label": {"enum": ["yes", "no"]}}}
    (path.parent / "schema.json").write_text(json.dumps(schema))
    ask = ("chat", "-c", path, "--base", "-m", "hello", "--max-new-tokens", "1")
    assert isinstance(luthier(*ask).exception, TemplateError)
    assert luthier(*ask, "--set", "data.json_schema=schema.json").exit_code == 0
