"""evaluate.metric grounded and all_of from YAML to verdict: a number that the prompt holds passes, the same number
where the prompt holds another fails, and rows that no model could be right about are refused before training."""

import json

import pytest

from luthier.errors import ConfigError, EvaluateError
from tests.jobs.toy import make_base, make_texts


def write_reply_project(folder, base, rows):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / "luthier.yaml"
    path.write_text(
        f"""\
model: {{base: "{base}"}}
data:
  train: [rows.jsonl]
  prompt: "{{text}}"
  completion: "{{reply}}"
  system: label
  split: {{train: 0.5, dev: 0.1, test: 0.4}}
train: {{sequence_len: 128, micro_batch_tokens: 512, max_steps: 1}}
evaluate:
  metric: all_of
  metrics: [grounded, regex]
  max_new_tokens: 6
  gates: {{perplexity: null}}
  prompt: {{shots: [0], finalists: 1}}
  graders:
    all_of: [grounded, regex]
    grounded: {{must_say: key}}
    regex: {{pattern: "^so "}}
ship: {{formats: []}}
"""
    )
    return path


def rows_about(number, seed, count=120):
    return [
        {"text": f"{text} {number}", "reply": f"so {number}", "key": [str(number)]}
        for text, _ in make_texts(count, seed=seed)
    ]


@pytest.fixture(scope="module")
def talker(tmp_path_factory):
    """A tiny model that says `so 7` to everything under the system message `label`."""
    return make_base(tmp_path_factory.mktemp("talker") / "base", steps=60, answers={"yes": "so 7", "no": "so 7"})


@pytest.mark.parametrize("number, share", [(7, 1.0), (8, 0.0)])
def test_a_figure_counts_only_where_the_prompt_holds_it(luthier, tiny_base, talker, tmp_path, number, share):
    path = write_reply_project(tmp_path, tiny_base, rows_about(number, seed=21))
    result = luthier("evaluate", "-c", path, "--model", talker)
    verdict = json.loads(next(path.parent.glob("runs/evaluate-*/verdict.json")).read_text())
    metrics = verdict["metrics"]
    assert metrics["grounded"]["tuned"] == metrics["all_of"]["tuned"] == share, (result.output, metrics)
    assert verdict["environments"] == {}  # no part runs code
    assert metrics["regex"]["tuned"] == 1.0 and (result.exit_code == 0) == (share == 1.0), result.output


BAD_ROWS = {
    "claims what its prompt does not hold: 9": lambda row: {**row, "reply": "so 7 or 9"},
    "does not say '7'": lambda row: {**row, "reply": "so it is"},
    "no key facts in its column 'key'": lambda row: {**row, "key": None},
    "regex: it does not match": lambda row: {**row, "reply": "7"},
}


@pytest.mark.parametrize("words", BAD_ROWS)
def test_rows_that_nobody_can_be_right_about_are_refused_before_training(luthier, tiny_base, tmp_path, words):
    path = write_reply_project(tmp_path, tiny_base, [BAD_ROWS[words](row) for row in rows_about(7, 22, 40)])
    result = luthier("run", "-c", path)
    assert isinstance(result.exception, EvaluateError) and words in str(result.exception), result.output
    assert not list(path.parent.glob("runs/train-*"))


def test_all_of_without_parts_is_refused(luthier, tiny_base, tmp_path):
    path = write_reply_project(tmp_path, tiny_base, rows_about(7, 23, 40))
    result = luthier("run", "-c", path, "--set", "evaluate.graders.all_of=[]")
    assert isinstance(result.exception, ConfigError) and "all_of has no parts" in str(result.exception)
