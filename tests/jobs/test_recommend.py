"""`luthier recommend` end to end: the proposals, the written file that trains, and what it refuses."""

import json
import re

import pytest

from luthier.config.load import load_project
from luthier.errors import ConfigError
from tests.jobs.toy import make_texts, write_csv

BLOCKS = """\
# my project
model: {{base: "{base}"}}
data:
  train: [rows.csv]
  format: columns
  prompt: "{{text}}"
  completion: "{{label}}"
train:   # how
    # mine
    sequence_len: 128
    max_steps: 2
"""


@pytest.fixture
def project(tmp_path, tiny_base):
    write_csv(tmp_path / "rows.csv", make_texts(60, seed=3))
    path = tmp_path / "luthier.yaml"
    path.write_text(BLOCKS.format(base=tiny_base))
    return path


def test_it_says_what_why_and_how_to_try_it(project, luthier):
    result = luthier("recommend", "-c", project)
    assert result.exit_code == 0, result.output
    words = " ".join(result.output.split())
    assert "under 100 rows" in words and "Prechelt" in words and "knobs would change" in words
    settings = re.search(r"to try it: ((?:--set \S+ ?)+)", words)
    spec = load_project(project, re.findall(r"--set (\S+)", settings[1])).spec
    assert spec.train.num_epochs == 3 and spec.train.early_stopping_patience == 2
    proposals = json.loads(luthier("recommend", "-c", project, "--json").output)["proposals"]
    assert {one["key"] for one in proposals if one["stated"]} == set()


def test_the_written_project_keeps_the_comments_and_trains(project, luthier):
    output = project.with_name("filled.yaml")
    result = luthier("recommend", "-c", project, "-o", output)
    assert result.exit_code == 0, result.output
    text, spec = output.read_text(), load_project(output).spec
    assert [line for line in text.splitlines() if line in BLOCKS.splitlines()], "the user's lines stand"
    assert "# my project" in text and "    # mine" in text and "    num_epochs: 3  # few rows" in text
    assert spec.train.max_steps == 2 and spec.adapter.lora_dropout == 0.1 and spec.train.lr_scheduler == "cosine"
    assert luthier("train", "-c", output).exit_code == 0
    assert "0 of 13 knobs would change" in luthier("recommend", "-c", output).output


@pytest.mark.parametrize(
    ("change", "output", "words"),
    [
        (lambda text: text, "luthier.yaml", "exists already"),
        (lambda text: text, "elsewhere/luthier.yaml", "not in"),
        (
            lambda text: text[: text.index("train:   #")] + "train: {sequence_len: 128}\n",
            "new.yaml",
            r":8: section train",
        ),
        (lambda text: text.replace("model:", "modle:"), "new.yaml", "unknown key modle"),
    ],
    ids=["exists", "other-folder", "not-a-block", "bad-project"],
)
def test_refusals(project, luthier, change, output, words):
    project.write_text(change(project.read_text()))
    before = project.read_bytes()
    result = luthier("recommend", "-c", project, "-o", project.parent / output)
    assert isinstance(result.exception, ConfigError) and re.search(words, str(result.exception))
    assert project.read_bytes() == before and sorted(p.name for p in project.parent.glob("*.yaml")) == ["luthier.yaml"]
