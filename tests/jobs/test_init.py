"""`luthier init`: the project file that it writes is prepared without an edit, and says what it did not understand."""

import csv
import json
import random

import pyarrow
import pyarrow.parquet
import pytest

from luthier.config.load import load_project
from luthier.errors import ConfigError, DataError

WORDS = ["order", "parcel", "invoice", "refund", "login", "crash", "screen", "window", "kettle", "lamp", "table"]
RNG = random.Random(0)


def text(count: int = 12) -> str:
    return " ".join(RNG.choices(WORDS, k=count))


def chat(role: str, content: str, *answer: str) -> list[dict]:
    names = ("user", "assistant") if role == "role" else ("human", "gpt")
    return [{role: name, content: words} for name, words in zip(names, (text(), *answer), strict=False)]


ROWS = {
    "alpaca": lambda i: {"instruction": text(), "input": text(4) if i % 2 else "", "output": text(5)},
    "messages": lambda i: {"messages": chat("role", "content", text(5))},
    "sharegpt": lambda i: {"conversations": chat("from", "value", text(5))},
    "prompt_completion": lambda i: {"prompt": text(), "completion": text(5)},
    "text": lambda i: {"text": text(20)},
    "preference": lambda i: {"prompt": text(), "chosen": text(5), "rejected": text(6)},
    "kto": lambda i: {"prompt": text(), "completion": text(5), "label": True},
    "stepwise": lambda i: {"prompt": text(), "completions": [text(3), text(4)], "labels": [True, True]},
    "segments": lambda i: {"segments": [{"text": text(), "label": False}, {"text": text(5), "label": True}]},
    "summarizetldr": lambda i: {"article": text(20), "summary": text(5)},
    "columns": lambda i: {"id": i, "subject": text(3), "body": text(14), "category": RNG.choice(["billing", "tech"])},
}
NESTED = ("messages", "sharegpt", "stepwise", "segments")


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def init(luthier, file, *more):
    """The project that init writes beside the data, and its words. A refusal is raised."""
    output = file.parent / "luthier.yaml"
    result = luthier("init", file, *more, "-o", output, "--force")
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return load_project(output), result.output


OLD = ("alpaca", "messages", "sharegpt", "prompt_completion", "text", "columns")
CASES = [(k, e) for k in OLD for e in ("csv", "jsonl", "json", "parquet") if not (k in NESTED and e == "csv")]
CASES += [(k, "parquet" if k in NESTED else "csv") for k in ROWS if k not in OLD]


@pytest.mark.parametrize(("kind", "ending"), CASES, ids=[".".join(case) for case in CASES])
def test_every_format_is_prepared_without_an_edit(tmp_path, tiny_base, luthier, kind, ending):
    file = write(tmp_path / f"with space ü/{kind}.{ending}", [ROWS[kind](i) for i in range(60)])
    project, _ = init(luthier, file)
    assert project.spec.data.format == kind
    result = luthier("prepare", "-c", project.path, "--set", f"model.base={tiny_base}")
    assert result.exit_code == 0, result.output
    assert "60 rows read = 60 kept + 0 quarantined" in result.output


def test_metric_and_answer_length_come_from_the_answers_of_a_conversation(tmp_path, luthier):
    rows = [{"messages": chat("role", "content", RNG.choice(["yes", "no"]))} for _ in range(40)]
    project, _ = init(luthier, write(tmp_path / "a.jsonl", rows))
    assert project.spec.evaluate.metric == "accuracy" and project.spec.evaluate.max_new_tokens == 8


def test_a_label_beside_a_text_column_is_not_dropped(tmp_path, luthier):
    rows = [{"text": text(), "note": text(3), "sentiment": RNG.choice(["pos", "neg"])} for _ in range(40)]
    project, said = init(luthier, write(tmp_path / "a.csv", rows))
    assert project.spec.data.completion == "{sentiment}" and "not used: note" in said


def test_the_listed_classes_are_spelt_as_the_answers_are(tmp_path, tiny_base, luthier):
    rows = [{"review": text(), "spam": RNG.random() < 0.5} for _ in range(40)]
    project, _ = init(luthier, write(tmp_path / "a.jsonl", rows))
    assert project.spec.data.system.endswith("false, true")
    assert luthier("prepare", "-c", project.path, "--set", f"model.base={tiny_base}").exit_code == 0
    kept = next((tmp_path / "runs").glob("prepare-*")) / "train.jsonl"
    answers = {json.loads(line)["messages"][-1]["content"] for line in kept.open()}
    assert answers == {"false", "true"}


def test_sequence_len_leaves_room_for_the_system_message(tmp_path, luthier):
    rows = [{"note": text(), "intent": f"{text(4)[:50]} {i % 18:02d}"} for i in range(18)] * 5
    project, _ = init(luthier, write(tmp_path / "a.csv", rows))
    assert 3 * project.spec.train.sequence_len >= len(project.spec.data.system) + len(text())


def test_plain_text_is_sent_to_build_and_told_why(tmp_path, luthier):
    _, said = init(luthier, write(tmp_path / "a.jsonl", [{"text": text()} for _ in range(40)]))
    assert "no answers" in said and "next: luthier build" in said


def test_doubts_are_said(tmp_path, luthier):
    _, said = init(luthier, write(tmp_path / "one.csv", [{"text": text(), "label": "yes"} for _ in range(40)]))
    assert "nothing to learn" in said
    rows = [{"some first row": text(), "pos": RNG.choice(["pos", "neg"])} for _ in range(40)]
    _, said = init(luthier, write(tmp_path / "bare.csv", rows))
    assert "no header line" in said


LABELLED = [{"text": text(), "label": RNG.choice(["a", "b"])} for _ in range(40)]
REFUSED = {
    "token ids": [{"input_ids": [1, 2], "labels": [1, 2]} for _ in range(9)],
    "not an object": [1, 2, 3],
    "no answer": [{"messages": chat("role", "content")} for _ in range(9)],
    "no column looks like an answer": [{"my {text}": text(), "the label": text()} for _ in range(9)],
}


def test_preference_data_is_named_in_the_project_file(tmp_path, tiny_base, luthier):
    project, said = init(luthier, write(tmp_path / "a.jsonl", [ROWS["preference"](i) for i in range(40)]))
    assert project.spec.data.preferred_only and "preferred answers alone" in said
    result = luthier("prepare", "-c", project.path, "--set", "data.preferred_only=false")
    assert isinstance(result.exception, DataError) and "preferred_only: true" in result.exception.hint


@pytest.mark.parametrize("words", REFUSED, ids=list(REFUSED))
def test_what_cannot_be_trained_on_is_refused_with_the_reason(tmp_path, luthier, words):
    with pytest.raises(DataError, match=words):
        init(luthier, write(tmp_path / "a.jsonl", REFUSED[words]))
    assert not (tmp_path / "luthier.yaml").exists()


def test_further_files_are_looked_at_too(tmp_path, luthier):
    first = write(tmp_path / "a.csv", LABELLED)
    with pytest.raises(DataError, match="no such file"):
        init(luthier, first, tmp_path / "none.csv")
    with pytest.raises(DataError, match="no column 'text'"):
        init(luthier, first, write(tmp_path / "b.csv", [{"remark": "x", "label": "a"}]))
    project, _ = init(luthier, first, write(tmp_path / "c.jsonl", LABELLED))
    assert project.spec.data.train == ("a.csv", "c.jsonl")


def test_where_it_cannot_write_it_says_so(tmp_path, luthier):
    file = write(tmp_path / "a.csv", LABELLED)
    for output in (tmp_path, file / "luthier.yaml"):
        refused = luthier("init", file, "-o", output, "--force")
        assert isinstance(refused.exception, ConfigError), refused.exception
    (tmp_path / "luthier.yaml").write_text("mine")
    assert isinstance(luthier("init", file, "-o", tmp_path / "luthier.yaml").exception, ConfigError)
    assert (tmp_path / "luthier.yaml").read_text() == "mine"


def test_a_name_that_is_not_utf8_is_refused(tmp_path, luthier):
    file = write(tmp_path / "a.csv", LABELLED).rename(tmp_path / "b\udcff.csv")
    with pytest.raises(DataError, match="UTF-8"):
        init(luthier, file)


def test_the_data_is_never_overwritten_by_the_project_file(tmp_path, luthier):
    data = tmp_path / "rows.csv"
    write(data, [{"text": text(), "label": RNG.choice(["yes", "no"])} for _ in range(30)])
    before = data.read_bytes()
    refused = luthier("init", data, "-o", tmp_path / "x" / ".." / "rows.csv", "--force")
    assert isinstance(refused.exception, ConfigError) and "would be lost" in str(refused.exception)
    assert data.read_bytes() == before


def test_dollars_and_braces_in_the_data_are_not_taken_for_the_environment(tmp_path, luthier):
    data = tmp_path / "${HOME}.csv"
    write(data, [{"text": text(), "label": RNG.choice(["${HOME}", "$5"])} for _ in range(30)])
    assert luthier("init", data, "-o", tmp_path / "luthier.yaml").exit_code == 0
    spec = load_project(tmp_path / "luthier.yaml").spec
    assert spec.data.train == ("${HOME}.csv",) and "${HOME}" in spec.data.system


@pytest.mark.parametrize(
    ("content", "words", "hint"),
    [(b"text,label\n", "holds no row", "column names"), ("text,label\ncafé,a\n".encode("latin-1"), "UTF-8", "iconv")],
)
def test_a_file_without_rows_says_what_is_missing(tmp_path, luthier, content, words, hint):
    (tmp_path / "rows.csv").write_bytes(content)
    refused = luthier("init", tmp_path / "rows.csv", "-o", tmp_path / "luthier.yaml")
    assert isinstance(refused.exception, DataError) and words in str(refused.exception)
    assert hint in refused.exception.hint
