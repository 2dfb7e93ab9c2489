"""`luthier diagnose` on real runs: a healthy one, one that overfits, one that is never trained, a foreign template."""

import json
import random
import shutil

import pytest

from luthier.errors import ArtifactError
from tests.jobs.toy import make_texts, write_project
from tests.tiny import make_tokenizer

FLIPPED = {"yes": "no", "no": "yes"}


def findings(luthier, project, *settings):
    result = luthier("diagnose", "-c", project, *settings, "--json")
    assert result.exit_code == 0, result.output
    return [one["kind"] for one in json.loads(result.output)]


def test_a_healthy_run_and_its_closing_card(tmp_path, toy_base, luthier):
    project = write_project(tmp_path, toy_base, make_texts(300, seed=3))
    result = luthier("run", "-c", project)
    assert result.exit_code == 0 and "nothing wrong that the rules know" in result.output
    assert findings(luthier, project) == []


@pytest.mark.slow
def test_a_run_on_wrong_labels_overfits_and_the_next_move_is_a_diff(tmp_path, toy_base, luthier):
    rng = random.Random(0)
    pairs = [(t, FLIPPED[x] if rng.random() < 0.35 else x) for t, x in make_texts(300, seed=3)]
    project = write_project(tmp_path, toy_base, pairs)
    many = ("--set", "train.num_epochs=15", "--set", "adapter.lora_r=16")
    assert luthier("train", "-c", project, *many).exit_code == 0
    assert findings(luthier, project, *many) == ["overfitting"]
    said = luthier("diagnose", "-c", project, *many).output
    for words in (
        "dev loss",
        "more and more varied rows (now 150)",
        "-   num_epochs: 15",
        "+   num_epochs: 7",
        "not looked at",
    ):
        assert words in said, said


def test_what_was_never_trained_is_refused(tmp_path, tiny_base, luthier):
    project = write_project(tmp_path, tiny_base, make_texts(60, seed=3))
    for verb in ((), ("prepare",)):
        if verb:
            assert luthier(*verb, "-c", project).exit_code == 0
        error = luthier("diagnose", "-c", project).exception
        assert isinstance(error, ArtifactError) and "luthier run first" in error.hint


@pytest.mark.parametrize(("template", "kinds"), [("<|start_header_id|>", ["wrong_template"]), ("<|im_start|>", [])])
def test_markers_that_the_tokenizer_does_not_know(tmp_path, tiny_base, luthier, template, kinds):
    shutil.copytree(tiny_base, tmp_path / "base")
    written = (
        "{% for m in messages %}" + template + "{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}" + template + "assistant\n{% endif %}"
    )
    make_tokenizer(tmp_path / "base", template=written)
    project = write_project(tmp_path, tmp_path / "base", make_texts(60, seed=3))
    quick = ("--set", "train.max_steps=2")
    assert luthier("train", "-c", project, *quick).exit_code == 0
    assert findings(luthier, project, *quick) == kinds
