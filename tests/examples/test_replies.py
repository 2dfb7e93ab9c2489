"""examples/replies: the files are what the generator makes, the graders agree with every reference and with no broken
one, and nothing of the test file's facts can be learnt by heart."""

import hashlib
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from luthier.cli import app
from luthier.config.load import load_project
from luthier.graders.grader import Task
from luthier.graders.registry import GRADERS

FOLDER = Path(__file__).resolve().parents[2] / "examples/replies"
SPEC = load_project(FOLDER / "luthier.yaml").spec
CHECK = runpy.run_path(str(FOLDER / "check.py"))


def rows_of(name):
    return [json.loads(line) for line in (FOLDER / "raw" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


ROWS = {name: rows_of(name) for name in ("train", "test")}


BLOCKS = re.findall(r"^# (.+?)\n.*?^fact: (.+?)$", (FOLDER / "facts.txt").read_text(), re.MULTILINE | re.DOTALL)
FACTS = dict(BLOCKS)


def pattern_of(fact):
    """What finds a fact, whatever stands in its slots."""
    return re.compile("^- " + ".+?".join(map(re.escape, re.split(r"\{\w+\}", fact))) + "$", re.MULTILINE)


def task_of(row):
    prompt = ({"role": "system", "content": SPEC.data.system}, *row["messages"][:-1])
    return Task(columns=row, options=SPEC.evaluate.graders, prompt=prompt)


def test_the_generator_makes_the_same_bytes(tmp_path):
    command = [sys.executable, FOLDER / "generate.py", tmp_path]
    subprocess.run(command, check=True, capture_output=True, env={"PYTHONHASHSEED": "7", "LC_ALL": "C"})
    for name in ROWS:
        made, kept = (hashlib.sha256((at / f"{name}.jsonl").read_bytes()) for at in (tmp_path, FOLDER / "raw"))
        assert made.hexdigest() == kept.hexdigest(), name


def test_the_test_file_asks_about_other_facts():
    about = {name: {row["about"] for row in rows} for name, rows in ROWS.items()}
    assert not about["train"] & about["test"]
    assert len(about["train"] | about["test"]) >= 100 and len(about["test"]) >= 25
    tables = {name: "\n".join(row["messages"][0]["content"] for row in rows) for name, rows in ROWS.items()}
    for name, other in (("train", "test"), ("test", "train")):
        for fact in about[name] & FACTS.keys():
            pattern = pattern_of(FACTS[fact])
            assert pattern.search(tables[name]) and not pattern.search(tables[other]), fact


def test_inputs_vary():
    assert CHECK["near_duplicate_share"]([*CHECK["inputs"]("train"), *CHECK["inputs"]("test")]) <= 0.05
    turns = [sum(message["role"] == "user" for message in row["messages"]) for row in ROWS["train"]]
    assert {1, 2, 3} == set(turns) and turns.count(1) < 0.7 * len(turns)
    twice = ["How far is it to the lock cottage from here, if I may ask?"] * 2
    assert CHECK["near_duplicate_share"]([*twice, "Something else that nobody has said yet."]) == pytest.approx(2 / 3)


def test_every_reference_may_be_sent_and_so_may_every_earlier_reply():
    for rows in ROWS.values():
        answers = [row["messages"][-1]["content"] for row in rows]
        assert not any(GRADERS["all_of"].problems(answers, [task_of(row) for row in rows]))
    earlier = [
        (message["content"], {"messages": row["messages"][: place + 1], "key": []})
        for row in ROWS["train"]
        for place, message in enumerate(row["messages"][:-1])
        if message["role"] == "assistant"
    ]
    tasks = [task_of(row) for _, row in earlier]
    assert len(earlier) > 200 and not any(GRADERS["all_of"].problems([answer for answer, _ in earlier], tasks))


BREAKS = {  # what a reply does wrong: (the change, the metric that sees it)
    "no greeting": (lambda reply: reply.replace("Hello ", "Dear ", 1), "regex"),
    "another customer": (lambda reply: re.sub(r"Hello \w+", "Hello Merlin", reply), "grounded"),
    "exclamation mark": (lambda reply: reply.replace(". Kind", "! Kind"), "regex"),
    "no sign-off": (lambda reply: reply.replace(" Kind regards, Tarn & Wick", ""), "regex"),
    "goes on after it": (lambda reply: reply + ". PS: thanks", "regex"),
    "no next step": (lambda reply: reply.replace("Next, please", "Please"), "regex"),
    "blames": (lambda reply: reply.replace(" Next,", " You should have asked before. Next,"), "regex"),
    "American spelling": (lambda reply: reply.replace(" Next,", " The color fades. Next,"), "regex"),
    "contraction": (lambda reply: reply.replace(" Next,", " It doesn't fade. Next,"), "regex"),
    "says I": (lambda reply: reply.replace(" Next,", " So I think. Next,"), "regex"),
    "endless sentence": (lambda reply: reply.replace(" Next,", f" This{' and this' * 13}. Next,"), "regex"),
    "refuses a shop question": (lambda reply: reply.replace(" Next,", " It is outside what we do. Next,"), "regex"),
    "invents a price": (lambda reply: reply.replace(" Next,", " It costs £999. Next,"), "grounded"),
    "invents a date": (lambda reply: reply.replace(" Next,", " It comes on 30 March. Next,"), "grounded"),
    "invents a product": (lambda reply: reply.replace(" Next,", " See the Merlin stove. Next,"), "grounded"),
    "says nothing": (lambda reply: "Hello, all is well. Next, please wait. Kind regards, Tarn & Wick", "grounded"),
}


@pytest.mark.parametrize("words", BREAKS)
def test_a_reply_that_breaks_one_rule_is_caught_by_the_metric_for_it(words):
    change, metric = BREAKS[words]
    named = [row for row in ROWS["test"] if "Hello " in row["messages"][-1]["content"]]
    row = next(row for row in named if "20" not in str(row["key"]) and "outside" not in str(row["key"]))
    reply = row["messages"][-1]["content"]
    broken = change(reply)
    assert broken != reply
    marks = {name: GRADERS[name].grade(broken, reply, task_of(row)) for name in ("regex", "grounded", "all_of")}
    other = "grounded" if metric == "regex" else "regex"
    assert marks[metric] == marks["all_of"] == 0.0 and marks[other] == 1.0, (broken, marks)


def test_a_foreign_request_must_be_refused():
    row = next(row for row in ROWS["test"] if row["about"].startswith("off topic"))
    helpful = "Hello, we are glad to help. It will rain. Next, please take a coat. Kind regards, Tarn & Wick"
    for name in ("regex", "grounded"):
        assert GRADERS[name].grade(helpful, row["messages"][-1]["content"], task_of(row)) == 0.0


@pytest.fixture(scope="module")
def options(tiny_base, tmp_path_factory):
    """Settings with which the tiny base, whose tokens are short, can take the rows."""
    more = {
        "model.base": tiny_base, "output_dir": tmp_path_factory.mktemp("replies"), "train.sequence_len": 4096,
        "train.micro_batch_tokens": 4096, "train.max_steps": 1, "evaluate.max_new_tokens": 4,
        "evaluate.prompt.dev_rows": 2, "ship.formats": "[]",
    }  # fmt: skip
    return [word for key, value in more.items() for word in ("--set", f"{key}={value}")]


@pytest.mark.slow
def test_all_rows_are_accounted_for(options):
    done = CliRunner().invoke(app, ["prepare", "-c", str(FOLDER / "luthier.yaml"), *map(str, options)])
    assert done.exit_code == 0, done.output
    output = Path(next(str(word) for word in options if str(word).startswith("output_dir=")).partition("=")[2])
    summary = json.loads(next(output.glob("prepare-*/summary.json")).read_text())
    assert summary["rows_read"] == sum(map(len, ROWS.values())) == summary["rows_kept"] + summary["rows_quarantined"]
    assert summary["rows_quarantined"] <= 10 and summary["leaks"] == []
    splits = summary["splits"]
    assert splits["train"] >= 600 and splits["dev"] >= 50 and splits["test"] >= 200


@pytest.mark.slow
def test_the_whole_road_on_a_tiny_base(options):
    done = CliRunner().invoke(app, ["run", "-c", str(FOLDER / "luthier.yaml"), *map(str, options)])
    assert done.exit_code in (10, 11, 12), done.output
    output = Path(next(str(word) for word in options if str(word).startswith("output_dir=")).partition("=")[2])
    verdict = json.loads(next(output.glob("evaluate-*/verdict.json")).read_text())
    assert set(verdict["metrics"]) == {"all_of", "regex", "grounded", "rouge_l"}
    told = subprocess.run([sys.executable, FOLDER / "check.py", output], check=True, capture_output=True, text=True)
    assert "may be sent as it is (all_of)" in told.stdout
