"""evaluate.metric unit_tests from YAML to verdict: code that passes ships, wrong code does not, and rows whose tests
prove nothing are refused before anything is trained."""

import json

import pytest

from luthier.errors import ConfigError, EvaluateError
from luthier.graders.sandbox.box import SandboxPool
from tests.jobs.toy import make_base, make_texts

CODE = {"yes": ("a=1", "assert a == 1"), "no": ("a=2", "assert a == 2")}


def write_code_project(folder, base, pairs, *, rows=None, more=""):
    """Rows of text, code and tests; the label says which code."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = rows or [{"text": text, "code": CODE[label][0], "tests": [CODE[label][1]]} for text, label in pairs]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / "luthier.yaml"
    path.write_text(
        f"""\
model: {{base: "{base}"}}
data:
  train: [rows.jsonl]
  prompt: "{{text}}"
  completion: "{{code}}"
  split: {{train: 0.5, dev: 0.1, test: 0.4}}
adapter: {{lora_r: 8, lora_alpha: 16}}
train: {{sequence_len: 128, micro_batch_tokens: 512, learning_rate: 1e-2, num_epochs: 4, eval_task_rows: 4}}
evaluate:
  metric: unit_tests
  metrics: [exact_match]
  max_new_tokens: 5
  gates: {{perplexity: null}}
  prompt: {{shots: [0], finalists: 1}}
  graders: {{unit_tests: {{timeout_s: 5{more}}}}}
ship: {{formats: []}}
"""
    )
    return path


def verdict_of(path):
    return json.loads(next(path.parent.glob("runs/evaluate-*/verdict.json")).read_text())


@pytest.fixture(scope="module")
def coder(tmp_path_factory):
    """A tiny model that writes `a=1`, whatever it is asked, when the system message is `label`."""
    return make_base(tmp_path_factory.mktemp("coder") / "base", steps=60, answers={"yes": "a=1", "no": "a=1"})


SYSTEM = ("--set", "data.system=label")


def test_code_that_passes_its_tests_ships(luthier, tiny_base, coder, tmp_path):
    path = write_code_project(tmp_path, tiny_base, [(text, "yes") for text, _ in make_texts(120, seed=11)])
    result = luthier("evaluate", "-c", path, "--model", coder, *SYSTEM)
    verdict = verdict_of(path)
    assert result.exit_code == 0, (result.output, verdict["metrics"])
    metrics = verdict["metrics"]["unit_tests"]
    assert metrics["tuned"] > 0.9 and metrics["base"] == 0.0
    assert "landlock" in verdict["environments"]["unit_tests"]
    report = next(path.parent.glob("runs/evaluate-*/report.md")).read_text()
    assert "ran generated code in the sandbox, behind:" in report and "+seccomp+" in report


def test_code_that_is_wrong_does_not_ship(luthier, tiny_base, coder, tmp_path):
    path = write_code_project(tmp_path, tiny_base, [(text, "no") for text, _ in make_texts(120, seed=11)])
    result = luthier("evaluate", "-c", path, "--model", coder, *SYSTEM)
    verdict = verdict_of(path)
    assert result.exit_code in (11, 12) and verdict["metrics"]["unit_tests"]["tuned"] == 0.0, result.output


BAD_ROWS = {
    "no tests in its column 'tests'": lambda row: {**row, "tests": None},
    "fails its own tests": lambda row: {**row, "tests": "assert a == 3"},
    "an empty program passes": lambda row: {**row, "tests": "x = 1"},
}


@pytest.mark.parametrize("words", BAD_ROWS)
def test_rows_that_prove_nothing_are_refused_before_training(luthier, tiny_base, tmp_path, words):
    rows = [{"text": text, "code": CODE[label][0], "tests": CODE[label][1]} for text, label in make_texts(40, seed=13)]
    path = write_code_project(tmp_path, tiny_base, [], rows=[BAD_ROWS[words](row) for row in rows])
    result = luthier("run", "-c", path)
    assert isinstance(result.exception, EvaluateError) and words in str(result.exception), result.output
    assert not list(path.parent.glob("runs/train-*"))


@pytest.mark.slow
def test_answers_may_import_the_modules_of_the_project(luthier, tiny_base, tmp_path):
    rows = [
        {"text": text, "code": "a=1", "tests": "import api\nassert api.N == a"} for text, _ in make_texts(40, seed=14)
    ]
    path = write_code_project(tmp_path, tiny_base, [], rows=rows, more=", modules: [lib]")
    quick = ("--set", "train.max_steps=1", "--set", "evaluate.max_new_tokens=1", "--set", "train.eval_task_rows=0")
    assert isinstance(luthier("run", "-c", path, *quick).exception, ConfigError)
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "api.py").write_text("N = 2\n")
    assert "AssertionError" in str(luthier("run", "-c", path, *quick).exception)
    (tmp_path / "lib" / "api.py").write_text("N = 1\n")
    assert luthier("run", "-c", path, *quick).exit_code in (10, 11, 12)


def test_a_machine_without_a_sandbox_refuses_before_training(luthier, tiny_base, tmp_path, monkeypatch):
    path = write_code_project(tmp_path, tiny_base, make_texts(40, seed=15))
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr("luthier.graders.sandbox.box._pool_of", _pool_without_cache)
    result = luthier("run", "-c", path)
    assert isinstance(result.exception, EvaluateError) and "Linux only" in str(result.exception)
    assert not list(path.parent.glob("runs/train-*"))


def _pool_without_cache(process, paths, state):
    return SandboxPool(paths)


def test_the_other_metrics_from_the_command_line(luthier, tiny_base, tmp_path):
    rows = [{"text": text, "code": f"#### {i}"} for i, (text, _) in enumerate(make_texts(40, seed=16))]
    path = write_code_project(tmp_path, tiny_base, [], rows=rows)
    quick = ("--set", "train.max_steps=1", "--set", "train.eval_task_rows=0", "--set", "evaluate.metric=numeric")
    more = ("--set", "evaluate.metrics=[regex]", "--set", "evaluate.graders.regex.pattern='#### (.*)'")
    assert luthier("run", "-c", path, *quick, *more).exit_code in (10, 11, 12)
    assert set(verdict_of(path)["metrics"]) == {"numeric", "regex"} and verdict_of(path)["environments"] == {}
    unset = luthier("run", "-c", path, *quick, "--set", "evaluate.metrics=[regex]")
    assert isinstance(unset.exception, ConfigError) and "regex has no pattern" in str(unset.exception)
