"""The room end to end: messy files in, splits and a quarantine out; the conservation law on every run."""

from __future__ import annotations

import dataclasses
import gzip
import json
import random
import time
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from luthier.config.data import DataSpec
from luthier.data.items import prompt_text
from luthier.data.prepare import prepare, read_summary
from luthier.data.quarantine import Entry, read_quarantine, retrieve
from luthier.data.report import data_report
from luthier.data.sources import find_sources
from luthier.data.split import leaks_between
from luthier.data.stored import read_encoded, read_rows
from luthier.errors import ConfigError, DataError, TemplateError
from tests.data.stub import WordCodec

WORDS = [f"w{i}" for i in range(900)]


def texts(num: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(10, 30))) for _ in range(num)]


def pairs(some: list[str]) -> str:
    return "".join(json.dumps({"prompt": t, "completion": "ok"}) + "\n" for t in some)


def run(folder, sequence_len=512, **spec):
    out = folder / "out"
    out.mkdir(exist_ok=True)
    given = {"train": ("*.jsonl",), **spec}
    return prepare(DataSpec(**given), codec=WordCodec(), sequence_len=sequence_len, out=out, base_dir=folder)


@pytest.fixture
def mixed(tmp_path):
    """Five files of five kinds, with every kind of bad row."""
    some = texts(200)
    near = some[0].split()
    near[-1] = "changed"
    (tmp_path / "a.jsonl").write_bytes(
        pairs(some[:60]).encode()
        + b'{"prompt": "x"\n'
        + b'{"prompt": NaN, "completion": "x"}\n\n'
        + json.dumps({"prompt": "no answer", "completion": "  "}).encode()
        + b"\n"
        + json.dumps({"prompt": "a\x00b\r\nc" + some[199], "completion": "\ufeffok"}).encode()
        + b"\n"
    )
    lines = ["prompt,completion", *(f"{t},ok" for t in some[60:100]), f"{some[0].upper()},ok", "ragged"]
    (tmp_path / "b.csv").write_bytes("\r\n".join(lines).encode() + b"\r\ncaf\xe9,ok\r\n")
    rows = [{"prompt": t, "completion": "ok"} for t in some[100:140]]
    (tmp_path / "c.json").write_text(json.dumps([*rows, {"prompt": " ".join(near), "completion": "ok"}, 3], indent=1))
    pq.write_table(
        pa.Table.from_pylist([{"prompt": t, "completion": "ok"} for t in some[140:170]]), tmp_path / "d.parquet"
    )
    chat = [
        {"messages": [{"role": "user", "content": t}, {"role": "assistant", "content": "ok"}]} for t in some[170:190]
    ]
    wrong = {"messages": [{"role": "user", "content": "x"}, {"role": "user", "content": "y"}]}
    boom = {"messages": [{"role": "user", "content": "go boom now"}, {"role": "assistant", "content": "ok"}]}
    data = "".join(json.dumps(row) + "\n" for row in [*chat, wrong, boom]).encode()
    (tmp_path / "e.jsonl.gz").write_bytes(gzip.compress(data))
    return tmp_path


FILES = ("a.jsonl", "b.csv", "c.json", "d.parquet", "e.jsonl.gz")


def test_messy_files_end_to_end(mixed):
    summary = run(mixed, train=FILES)
    assert {f.file: (f.rows_read, f.rows_quarantined) for f in summary.files} == {
        "a.jsonl": (64, 3),
        "b.csv": (43, 3),
        "c.json": (42, 2),
        "d.parquet": (30, 0),
        "e.jsonl.gz": (22, 2),
    }
    assert summary.rows_read == summary.rows_kept + summary.rows_quarantined == 201
    assert set(summary.quarantined.values()) == {1} and set(summary.quarantined) == {
        "not valid JSON",
        "NaN is not JSON",
        "empty answer",
        "exact duplicate",
        "… cells, but the header has …",
        "not UTF-8",
        "not an object",
        "near duplicate",
        "two user turns in a row",
        "cannot be rendered",
    }
    out = mixed / "out"
    rows = {split: read_rows(out, split) for split in ("train", "dev", "test")}
    assert {split: len(found) for split, found in rows.items()} == {k: v for k, v in summary.splits.items() if v}
    assert len({row.id for found in rows.values() for row in found}) == 191
    assert all(row.group and row.source in FILES and row.line for found in rows.values() for row in found)
    scrubbed = next(row for found in rows.values() for row in found if row.prompt[0]["content"].startswith("ab\nc"))
    assert scrubbed.answer == "ok"
    for split in ("train", "dev"):
        encoded = read_encoded(out, split)
        assert [row.row_id for row in encoded] == [row.id for row in rows[split]]
    entries = read_quarantine(out / "quarantine.jsonl")
    assert len(entries) == summary.rows_quarantined and all(retrieve(entry, mixed) for entry in entries)
    assert read_summary(out)["proof"]["straddling_edges"] == 0


def test_same_input_gives_the_same_bytes(mixed):
    def content():
        run(mixed, train=FILES)
        return {path.name: path.read_bytes() for path in (mixed / "out").iterdir()}

    assert content() == content()


class _Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.names = [], []

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.names.append(tag)


def test_report_is_whole_html_and_shows_no_quarantined_content(mixed):
    (mixed / "secret.jsonl").write_text('{"prompt": "hunter2", "completion": ""}\n' + pairs(texts(40, 9)))
    evil = {"prompt": "<script>alert(1)</script> please", "completion": "<img src=x onerror=y>"}
    (mixed / "evil.jsonl").write_text(json.dumps(evil) + "\n")
    run(mixed, train=(*FILES, "secret.jsonl", "evil.jsonl"))
    html = (mixed / "out" / "report.html").read_text()
    parser = _Tags()
    parser.feed(html)
    assert not parser.open and "script" not in parser.names and "img" not in parser.names
    assert "hunter2" not in html and "http" not in html.replace("http-equiv", "")
    assert "No row of one split resembles a row of another." in html


def test_the_report_is_no_good_news_with_many_faults_and_shares_are_of_what_was_dealt(tmp_path):
    (tmp_path / "a.jsonl").write_text(pairs(texts(90)))
    (tmp_path / "test.jsonl").write_text(pairs(texts(60, 1)))
    split = {"train": 0.9, "dev": 0.1, "test": 0.0}
    summary = run(tmp_path, train=("a.jsonl",), test=("test.jsonl",), split=split)
    summary.warnings.clear()  # one answer to everything: not the matter here
    html = data_report(summary, {}, [9] * 150, [])
    assert 'class="banner good"' in html
    share = summary.splits["train"] / 90
    assert f"{share:.1%}" in html and f"{summary.splits['train'] / 150:.1%}" not in html and "as given" in html
    fault = Entry("a.jsonl", 1, 0, 1, "not valid JSON", "not valid JSON", "", is_fault=True)
    assert 'class="banner warn"' in data_report(summary, {}, [9] * 150, [fault] * 8)
    by_rule = [dataclasses.replace(fault, is_fault=False, reason="over length")] * 8
    assert 'class="banner good"' in data_report(summary, {}, [9] * 150, by_rule)


def test_test_files_stay_and_leaks_leave_training(tmp_path):
    some, tests = texts(80), texts(20, 1)
    leaky = [tests[0], tests[1].upper(), " ".join([*tests[2].split(), "tail"])]
    (tmp_path / "train.jsonl").write_text(pairs(some + leaky))
    (tmp_path / "test.jsonl").write_text(pairs(tests))
    summary = run(tmp_path, train=("train.jsonl",), test=("test.jsonl",))
    assert summary.splits["test"] == 20 and summary.splits["train"] + summary.splits["dev"] == 80
    assert [leak["train"] for leak in summary.leaks] == [f"train.jsonl:{n}" for n in (81, 82, 83)]
    assert summary.quarantined == {"leaks into the test set": 3}
    out = tmp_path / "out"
    prompts = {name: [prompt_text(row) for row in read_rows(out, name)] for name in ("train", "dev", "test")}
    assert leaks_between(prompts["train"] + prompts["dev"], prompts["test"], 0.7) == []
    with pytest.raises(DataError, match=r"named in data\.train and in data\.test"):
        run(tmp_path, train=("train.jsonl", "test.jsonl"), test=("test.jsonl",))
    with pytest.raises(DataError, match=r"named in data\.train and in data\.mix\.replay\.files"):
        run(tmp_path, train=("train.jsonl",), mix={"replay": {"files": ["train.jsonl"]}})
    (tmp_path / "all.jsonl").write_text(pairs(tests))
    with pytest.raises(DataError, match="every training row also stands in the test set"):
        run(tmp_path, train=("all.jsonl",), test=("test.jsonl",))


def test_no_dev_is_refused_or_accepted_by_name(tmp_path):
    (tmp_path / "a.jsonl").write_text(pairs(texts(50)))
    split = {"train": 0.8, "dev": 0.0, "test": 0.2}
    with pytest.raises(DataError, match="dev") as caught:
        run(tmp_path, split=split)
    assert "allow_no_dev" in caught.value.hint
    summary = run(tmp_path, split=split, allow_no_dev=True)
    assert not summary.has_dev and any("forfeited" in warning for warning in summary.warnings)
    (tmp_path / "a.jsonl").write_text(pairs(texts(1)))
    with pytest.raises(DataError, match="no dev split"):
        run(tmp_path)


@pytest.mark.known_bug("PK4", "PK5")
def test_long_rows_stop_the_run_or_are_set_aside(tmp_path):
    (tmp_path / "a.jsonl").write_text(pairs([*texts(50), " ".join(WORDS[:200])]))
    with pytest.raises(DataError, match=r"1 of 51 rows .* a.jsonl:51 \(203 tokens\)") as caught:
        run(tmp_path, sequence_len=100)
    assert "203" in caught.value.hint
    summary = run(tmp_path, sequence_len=100, over_length="quarantine")
    assert summary.quarantined == {"over length": 1} and summary.rows_kept == 50
    with pytest.raises(DataError, match="51 of 51"):
        run(tmp_path, sequence_len=4)
    with pytest.raises(DataError):
        run(tmp_path, sequence_len=4, over_length="quarantine")


@pytest.mark.known_bug("PK5")
def test_rows_without_a_trained_token_are_set_aside(tmp_path):
    """An answer whose every token is masked would be a row of zero loss, or a division by zero."""

    class Masking(WordCodec):
        def encode(self, row):
            return [
                dataclasses.replace(e, trained=(False,) * len(e.ids)) if row.answer == "mute" else e
                for e in super().encode(row)
            ]

    muted = json.dumps({"prompt": texts(1, seed=9)[0], "completion": "mute"})
    (tmp_path / "a.jsonl").write_text(pairs(texts(50)) + muted + "\n")
    out = tmp_path / "out"
    out.mkdir()
    spec = DataSpec(train=("*.jsonl",))
    summary = prepare(spec, codec=Masking(), sequence_len=512, out=out, base_dir=tmp_path)
    assert summary.quarantined == {"no trained token": 1} and summary.rows_kept == 50
    kept = [row for split in ("train", "dev") for row in read_encoded(out, split)]
    assert kept and all(any(row.trained) for row in kept)


def test_too_many_faults_stop_the_run_with_the_first_places(tmp_path):
    (tmp_path / "a.jsonl").write_text(pairs(texts(20)) + "oops\n" * 20)
    with pytest.raises(DataError, match=r"20 of 40 rows cannot be used \(50%.*first at a.jsonl:21"):
        run(tmp_path)
    assert run(tmp_path, max_quarantine_share=0.5).rows_quarantined == 20
    (tmp_path / "a.jsonl").write_text("oops\n" * 20)
    with pytest.raises(DataError, match="no usable row"):
        run(tmp_path)


def test_a_template_that_fails_everywhere_is_its_own_error(tmp_path):
    (tmp_path / "a.jsonl").write_text(pairs([f"boom {text}" for text in texts(20)]))
    with pytest.raises(TemplateError, match="said boom"):
        run(tmp_path)


def test_columns_schema_groups_limit_and_unlabelled(tmp_path):
    some = texts(120)
    lines = ["body,topic,urgency,customer", *(f"{t},{'ab'[i % 2]},{i % 3 + 1},c{i // 4}" for i, t in enumerate(some))]
    (tmp_path / "a.csv").write_text("\n".join([*lines, f"{texts(1, 7)[0]},a,9,c1", f"{texts(1, 8)[0]},a,1,"]))
    properties = {"topic": {"enum": ["a", "b"]}, "urgency": {"type": "integer", "maximum": 3}}
    (tmp_path / "schema.json").write_text(json.dumps({"type": "object", "properties": properties}))
    (tmp_path / "new.txt").write_text("\n".join([some[45], *texts(10, 3), texts(1, 3)[0]]))
    (tmp_path / "new.csv").write_text("body\n" + "\n".join([some[45], *texts(10, 3), texts(1, 3)[0]]))
    spec = {
        "train": ("a.csv",), "prompt": "{body}", "json_fields": ("topic", "urgency"), "json_schema": "schema.json",
        "group_by": "customer", "stratify_by": "topic", "limit_rows": 50, "unlabelled": ("new.csv",),
        "system": "Label topic and urgency.",
    }  # fmt: skip
    summary = run(tmp_path, **spec)
    assert summary.splits["train"] == 50 and summary.splits["unlabelled"] == 10
    assert summary.quarantined["the answer breaks the schema at urgency"] == 1
    assert summary.quarantined["column … of data.group_by is missing or empty"] == 1
    rows = {split: read_rows(tmp_path / "out", split) for split in ("train", "dev", "test", "unlabelled")}
    assert json.loads(rows["train"][0].answer).keys() == {"topic", "urgency"}
    assert rows["train"][0].messages[0] == {"role": "system", "content": "Label topic and urgency."}
    assert rows["unlabelled"][0].answer == "" and rows["train"][0].columns["customer"].startswith("c")
    homes = {}
    for split in ("train", "dev", "test"):
        for row in rows[split]:
            assert homes.setdefault(row.columns["customer"], split) == split
    with pytest.raises(DataError, match="no column 'body'"):
        run(tmp_path, **{**spec, "unlabelled": ("new.txt",)})
    with pytest.raises(DataError, match="no column 'nope'"):
        run(tmp_path, **{**spec, "json_fields": ("nope",)})
    (tmp_path / "schema.json").write_text('{"type": "wat"}')
    with pytest.raises(DataError, match="not a JSON Schema"):
        run(tmp_path, **spec)


def test_limited_rows_are_nested_whole_groups_and_leave_the_other_splits_alone(tmp_path):
    """What a learning curve needs: a smaller training set is part of a larger one, near-duplicates come together, dev
    and test are the same rows each time, and every row is accounted for."""
    lines = [f"{text},c{i // 5}" for i, text in enumerate(texts(300))]
    (tmp_path / "a.csv").write_text("\n".join(["body,customer", *lines]))
    spec = {"train": ("a.csv",), "prompt": "{body}", "completion": "{customer}", "group_by": "customer"}
    found = {}
    for limit in (None, 120, 58, 17):
        summary = run(tmp_path, **spec, limit_rows=limit, limit_dev_rows=12)
        found[limit] = {name: read_rows(tmp_path / "out", name) for name in ("train", "dev", "test")}
        left_out = summary.quarantined.get("left out by data.limit_rows", 0)
        assert len(found[limit]["train"]) + left_out == len(found[None]["train"])
        assert len(found[limit]["train"]) == (limit or len(found[None]["train"])) and len(found[limit]["dev"]) == 12
        assert found[limit]["dev"] == found[None]["dev"] and found[limit]["test"] == found[None]["test"]
    whole = Counter(row.group for row in found[None]["train"])
    for larger, smaller in pairwise(found):
        assert {row.id for row in found[smaller]["train"]} < {row.id for row in found[larger]["train"]}
        kept = Counter(row.group for row in found[smaller]["train"])
        assert sum(count < whole[group] for group, count in kept.items()) <= 1, "only one group is cut"
    assert len({row.group for row in found[None]["dev"]}) == 3, "12 rows in groups of 5"
    run(tmp_path, **spec, limit_rows=17)
    assert len(read_rows(tmp_path / "out", "dev")) > 12
    other = {row.id for row in read_rows(tmp_path / "out", "train")}
    run(tmp_path, **spec, limit_rows=17, split_seed=1)
    assert other != {row.id for row in read_rows(tmp_path / "out", "train")}


def test_impossible_settings(tmp_path):
    (tmp_path / "a.jsonl").write_text(pairs(texts(30)))
    for change, error in (
        ({"leak_threshold": 0.0}, ConfigError),
        ({"json_fields": ("a",)}, ConfigError),
        ({"train": ("nothing*.jsonl",)}, DataError),
        ({"split": {"train": 0.0, "dev": 0.5, "test": 0.5}}, DataError),
    ):
        with pytest.raises(error) as caught:
            run(tmp_path, **change)
        assert caught.value.hint


def test_a_file_without_a_usable_row_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text(pairs(texts(60)))
    (tmp_path / "latin.csv").write_bytes("prompt,completion\ncafé,ok\nthé,ok\n".encode("latin-1"))
    assert "latin.csv: none of its 2 rows is used (not UTF-8)" in run(tmp_path, train=("*.*",)).warnings


def test_rows_that_only_repeat_one_another_are_told_as_such(tmp_path):
    (tmp_path / "a.jsonl").write_text(pairs(texts(1) * 100))
    with pytest.raises(DataError, match="99 of 100 rows repeat an earlier one"):
        run(tmp_path)


def test_one_answer_to_everything_is_warned_of(tmp_path):
    some = texts(60)
    (tmp_path / "a.jsonl").write_text(pairs(some))
    assert any("same answer, 'ok'" in words for words in run(tmp_path).warnings)
    (tmp_path / "a.jsonl").write_text(pairs(some[:30]) + pairs(some[30:]).replace('"ok"', '"no"'))
    assert not any("same answer" in words for words in run(tmp_path).warnings)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in some))
    assert not any("same answer" in words for words in run(tmp_path).warnings), "plain text has no answers"


def test_names_of_files_beside_the_project_are_short_and_do_not_move_with_the_tree(tmp_path):
    for tree in ("one", "another/and/deeper"):
        home = tmp_path / tree / "project"
        home.mkdir(parents=True)
        (home.parent / "rows.jsonl").write_text(pairs(texts(60)))
        names = [find_sources((given,), "train", home)[0].name for given in ("../rows.jsonl", "../*.jsonl")]
        names += [find_sources((f"../project/../{name}",), "train", home)[0].name for name in ("rows.jsonl",)]
        assert names == ["../rows.jsonl"] * 3
        absolute = home.parent / "rows.jsonl"
        assert find_sources((str(absolute),), "train", home)[0].name == str(absolute)
        with pytest.raises(DataError, match=rf"^{home.parent}/none.jsonl: no such file"):
            find_sources(("../none.jsonl",), "train", home)


def test_plain_text_rows(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(texts(40)) + "\n\n")
    assert run(tmp_path, train=("a.txt",)).rows_kept == 40
    assert read_rows(tmp_path / "out", "train")[0].text


def test_five_thousand_rows_are_quick(tmp_path):
    (tmp_path / "a.jsonl").write_text(pairs(texts(5000)))
    begun = time.process_time()
    assert run(tmp_path).rows_kept == 5000
    assert time.process_time() - begun < 20  # 2.5 s on a quiet machine; the bound only catches something quadratic
