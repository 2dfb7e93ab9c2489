"""The checks as a user meets them: policies, groups, frozen rows, other splits, mixing, and the proof recomputed."""

import json
import random
import re
import shutil
from collections import Counter
from datetime import datetime

import pytest

from luthier.config.data import DataSpec
from luthier.config.data_checks import ChecksSpec, PiiSpec
from luthier.data.assign import parse_time
from luthier.data.checks import Checker
from luthier.data.clean import clean_content
from luthier.data.compare import compare
from luthier.data.eval_guard import freeze
from luthier.data.items import Item, row_id
from luthier.data.prepare import prepare
from luthier.data.quarantine import Quarantine, read_quarantine
from luthier.data.records import Record
from luthier.data.stored import read_encoded, read_rows
from luthier.data.verify_split import verify_split
from luthier.errors import ConfigError, DataError
from luthier.types import Message, Row
from tests.data.stub import WordCodec

WORDS = [f"w{i}" for i in range(900)]


def texts(num: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(10, 30))) for _ in range(num)]


def write(folder, rows, name="a.jsonl"):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def pairs(some, answer="ok"):
    return [{"prompt": text, "completion": answer} for text in some]


def run(folder, **given):
    out = folder / "out"
    out.mkdir(exist_ok=True)
    spec = DataSpec(**{"train": ("a.jsonl",), **given})
    return prepare(spec, codec=WordCodec(), sequence_len=512, out=out, base_dir=folder)


def all_rows(folder):
    return [row for split in ("train", "dev", "test") for row in read_rows(folder / "out", split)]


def test_redact_changes_every_text_of_the_row_and_drop_sets_it_aside(tmp_path):
    some = texts(60)
    rows = pairs(some[:58])
    rows += [{"prompt": f"{some[58]} mail a@shop.de or b@shop.de", "completion": "to b@shop.de", "by": "a@shop.de"}]
    rows += [{"prompt": f"{some[59]} card 4111 1111 1111 1111", "completion": "ok"}]
    write(tmp_path, rows)
    summary = run(tmp_path, checks={"pii": {"email": "redact", "card": "drop"}})
    assert summary.rows_read == 60 == summary.rows_kept + summary.rows_quarantined
    assert summary.quarantined == {"personal data: card": 1}
    row = next(row for row in all_rows(tmp_path) if row.line == 59)
    assert row.prompt[0]["content"].endswith("mail [EMAIL_1] or [EMAIL_2]") and row.answer == "to [EMAIL_2]"
    assert row.columns == {"by": "[EMAIL_1]"}
    written = "".join(path.read_text() for path in (tmp_path / "out").iterdir() if path.suffix != ".npy")
    assert "shop.de" not in written and "4111" not in written
    found = [json.loads(line) for line in (tmp_path / "out" / "findings.jsonl").read_text().splitlines()]
    assert {(f["line"], f["kind"], f["action"]) for f in found} == {(59, "email", "redact"), (60, "card", "drop")}


def test_the_rows_of_a_group_name_its_first_row(tmp_path):
    write(tmp_path, [{**row, "who": f"{number % 15}"} for number, row in enumerate(pairs(texts(60)))])
    run(tmp_path, group_by="who")
    rows = sorted(all_rows(tmp_path), key=lambda row: row.line)
    first = {row.columns["who"]: row.id for row in reversed(rows)}
    assert len(rows) == 60 and [row.group for row in rows] == [first[row.columns["who"]] for row in rows]


def test_each_row_goes_by_its_own_language(tmp_path):
    german, english = (
        "Wo bleibt meine Bestellung, sie sollte gestern kommen?",
        "Where is the order that I placed a week ago?",
    )
    said = [
        ("ok", german),
        (english, english),
        (english, german),
        (english, f'{{"answer": "{german}"}}'),
        (german, german),
    ]
    rows = [{"prompt": f"{prompt} {number}", "completion": answer} for number, (prompt, answer) in enumerate(said)]
    write(tmp_path, rows + pairs(texts(40)))
    summary = run(tmp_path, checks={"languages": ["en"], "language": "drop", "pii": {}}, near_duplicate_threshold=1)
    gone = {entry.line: entry.detail for entry in read_quarantine(tmp_path / "out" / "quarantine.jsonl")}
    assert gone == {3: "language: prompt en, answer de", 5: "language: de is not wanted"}
    assert {name: summary.checks["languages"][name] for name in ("en", "de")} == {"en": 3, "de": 1}


def test_a_value_in_the_prompt_and_in_the_column_it_came_from_is_one_finding(tmp_path):
    some = texts(40)
    rows = [{"text": f"{text} mail {i}@shop.de", "label": "ok", "by": f"by{i}@shop.de"} for i, text in enumerate(some)]
    write(tmp_path, rows)
    how = {"format": "columns", "prompt": "{text}", "completion": "{label}"}
    counts = {}
    for policy in ("report", "redact"):
        summary = run(tmp_path, **how, checks={"pii": {"email": policy}})
        counts[policy] = [(f["kind"], f["findings"], f["rows"]) for f in summary.checks["findings"]]
    assert counts == {"report": [("email", 40, 40)], "redact": [("email", 80, 40)]}  # `by` stands in no turn
    assert all("[EMAIL_1]" in row.columns["text"] and row.columns["by"] == "[EMAIL_2]" for row in all_rows(tmp_path))


def test_redact_reaches_calls_rejected_sides_pieces_and_columns_and_keeps_what_turns_carry(tmp_path):
    mail, spec = "eve@shop.de", ChecksSpec(pii=PiiSpec(email="redact"))
    tools = [{"type": "function", "function": {"name": "find", "parameters": {}}}]
    call = {"type": "function", "id": "c1", "function": {"name": "find", "arguments": {"name": mail, "n": 3}}}
    turns: tuple[Message, ...] = (
        {"role": "user", "content": f"who is {mail}", "tools": tools},
        {"role": "assistant", "content": "", "tool_calls": [call], "train": False},
        {"role": "tool", "content": "a customer", "tool_call_id": "c1"},
        {"role": "assistant", "content": f"a customer\n{mail}"},
    )
    steps = (("a customer", True), (mail, False))
    no: tuple[Message, ...] = ({"role": "assistant", "content": f"{mail}, no idea"},)
    rows = [
        Row(row_id(turns, ""), turns, rejected=no, steps=steps, label=True, columns={"name": mail}),
        Row("b", text=f"to {mail} now", segments=(("to ", False), (f"{mail} now", True))),
        Row("c", text=f"to {mail}", segments=(("to eve", False), ("@shop.de", True))),
        Row("d", text="nothing here", columns={"by": {"name": [mail]}}),
    ]
    quarantine = Quarantine()
    checker = Checker(spec, tmp_path, quarantine)
    items = checker.run([Item(row, Record("a.jsonl", n, 0, 0, "")) for n, row in enumerate(rows, start=1)])
    chat, segmented, column = (item.row for item in items)
    assert mail not in repr(items) and [e.line for e in quarantine.entries] == [3]
    assert "cannot be redacted" in quarantine.entries[0].detail
    function = chat.messages[1].get("tool_calls", [{}])[0]["function"]
    assert function == {"name": "find", "arguments": {"name": "[EMAIL_1]", "n": 3}}
    assert chat.messages[0].get("tools") == tools and chat.messages[1].get("train") is False
    assert chat.messages[2].get("tool_call_id") == "c1" and chat.label is True
    assert chat.rejected[0]["content"] == "[EMAIL_1], no idea"
    assert chat.steps == (("a customer", True), ("[EMAIL_1]", False))
    assert segmented.segments == (("to ", False), ("[EMAIL_1] now", True)) and segmented.text == "to [EMAIL_1] now"
    assert chat.id == row_id(chat.messages, "", (), chat.rejected, True, chat.steps)
    assert segmented.id == row_id((), segmented.text, segmented.segments)
    assert column.columns == {"by": {"name": ["[EMAIL_1]"]}}


def test_cleaning_repairs_text_and_keeps_what_turns_carry_and_the_space_of_code():
    turns: tuple[Message, ...] = (
        {"role": "user", "content": "cafÃ© ?", "tools": [{"type": "function"}]},
        {"role": "assistant", "content": "    return 1\n", "train": True},
    )
    counts: Counter[str] = Counter()
    clean, _ = clean_content(turns, "", DataSpec(train=("a",), answer_language="code"), counts)
    assert clean[0] == {"role": "user", "content": "café ?", "tools": [{"type": "function"}]}
    assert clean[1] == turns[1] and counts["damaged encoding repaired"] == 1
    kept, _ = clean_content(turns, "", DataSpec(train=("a",), checks=ChecksSpec(encoding="report")), counts)
    assert kept[0]["content"] == "cafÃ© ?" and counts["damaged encoding (kept)"] == 1


def test_the_report_marks_what_is_trained_in_its_samples(tmp_path):
    write(tmp_path, pairs(texts(60), "the <answer>"))
    out = tmp_path / "out"
    out.mkdir()
    how = {"codec": WordCodec(), "sequence_len": 512, "out": out, "base_dir": tmp_path}
    spec = DataSpec(train=("a.jsonl",))
    prepare(spec, **how, show=lambda row: [(row.prompt[0]["content"], False), ("\n", False), (row.answer, True)])
    marked = re.findall("<mark>(.*?)</mark>", (out / "report.html").read_text())
    assert marked and set(marked) == {"the &lt;answer&gt;"}


def test_the_same_vocabulary_is_grouped_by_the_key_of_the_config(tmp_path):
    twins = ["lamp bulb light shade switch", "switch light lamp shade bulb"]
    write(tmp_path, pairs([*texts(60), *twins]))
    assert "same vocabulary" not in run(tmp_path).proof["edges_by_kind"]
    assert run(tmp_path, semantic_threshold=0.9).proof["edges_by_kind"]["same vocabulary"] == 1
    assert len({row.group for row in all_rows(tmp_path) if row.prompt[0]["content"] in twins}) == 1


def test_by_default_findings_change_no_row(tmp_path):
    write(tmp_path, pairs([*texts(50), "please write to someone@example.org about the lamp"]))
    summary = run(tmp_path)
    assert summary.rows_kept == 51 and any("someone@example.org" in r.prompt[0]["content"] for r in all_rows(tmp_path))
    assert any("email 1" in notice for notice in summary.notices)


def test_names_that_change_the_answer_are_counted_before_duplicates_go(tmp_path):
    base = "loan for {} who earns 3000 a month rents a flat in town has two children and no debts at all"
    rows = [*pairs(texts(60)), {"prompt": base.format("Emily"), "completion": "grant"}]
    write(tmp_path, [*rows, {"prompt": base.format("Lakisha"), "completion": "refuse"}])
    groups = {"group_terms": {"a": ("Emily",), "b": ("Lakisha",)}}
    summary = run(tmp_path, checks=groups)
    assert len(summary.checks["groups"]["conflicts"]) == 1 and any(
        "differ only by group" in w for w in summary.warnings
    )
    assert run(tmp_path, checks={**groups, "counterfactual": "drop"}).rows_quarantined == 2
    with pytest.raises(DataError, match="differ only by group"):
        run(tmp_path, checks={**groups, "counterfactual": "error"})


def test_a_wording_and_a_word_list_drop_what_they_find(tmp_path):
    (tmp_path / "bad.txt").write_text("# words\nblorp\n")
    write(
        tmp_path,
        [*pairs(texts(60)), *pairs(["alpha beta gamma"], "consider increasing dose"), *pairs(["you BLORP now"])],
    )
    checks = {"patterns": {"vague": "consider increasing"}, "word_lists": {"rude": "bad.txt"}, "flagged": "drop"}
    assert run(tmp_path, checks=checks).quarantined == {"word list: rude": 1, "wording: vague": 1}
    with pytest.raises(DataError, match="cannot be read"):
        run(tmp_path, checks={"word_lists": {"rude": "nowhere.txt"}})


def test_frozen_rows_never_train_again(tmp_path):
    some = texts(120)
    write(tmp_path, pairs(some))
    run(tmp_path)
    sealed = read_rows(tmp_path / "out", "test")
    freeze(tmp_path / "frozen_evals.json", "v1", sealed, "here")
    summary = run(tmp_path, split_seed=5)
    trained = {row.id for split in ("train", "dev") for row in read_rows(tmp_path / "out", split)}
    assert not trained & {row.id for row in sealed} and summary.quarantined["frozen for evaluation"] > 0
    assert summary.rows_read == 120 == summary.rows_kept + summary.rows_quarantined
    with pytest.raises(DataError, match="frozen for evaluation"):
        run(tmp_path, split_seed=5, on_frozen="error")
    with pytest.raises(DataError, match="frozen already"):
        freeze(tmp_path / "frozen_evals.json", "v1", sealed, "here")
    with open(tmp_path / "frozen" / "v1.jsonl", "a") as file:
        file.write("{}\n")
    with pytest.raises(DataError, match="not what was registered"):
        run(tmp_path)


@pytest.mark.parametrize(
    "value",
    [1706659200, "1706659200.0", 1706659200000, 20240131, "20240131", "2024-01-31", "2024-01-31T00:00:00Z",
     "2024-01-31 01:00:00+01:00", "2024-01-31T00:00:00.000000001Z", datetime(2024, 1, 31)],
)  # fmt: skip
def test_times_as_files_write_them(value):
    assert parse_time(value) == 1706659200.0


@pytest.mark.parametrize("value", [None, "", True, "01/31/2024", "2024", 20241331, 17066592000000000, "nan", "inf"])
def test_what_is_no_time(value):
    assert parse_time(value) is None


def test_a_split_by_time_and_by_column(tmp_path):
    part = {0: "test", 1: "val"}
    rows = [
        {**row, "at": f"2024-01-{1 + i % 28:02d}", "part": part.get(i % 9, "train")}
        for i, row in enumerate(pairs(texts(140)))
    ]
    write(tmp_path, [*rows, {**pairs(["no date here"])[0], "at": "soon", "part": "soon"}])
    summary = run(tmp_path, split={"by": "time", "column": "at"})
    ranges = summary.proof["time_ranges"]
    assert ranges["train"][1] < ranges["dev"][0] and ranges["dev"][1] < ranges["test"][0]
    assert summary.rows_quarantined == 1
    twin = rows[0]["prompt"] + " more"
    write(tmp_path, [*rows, {"prompt": twin, "completion": "other", "at": "2024-01-01", "part": "train"}])
    summary = run(tmp_path, split={"by": "column", "column": "part"}, near_duplicate_threshold=1.0)
    assert summary.quarantined == {"in one group with a row of test": 1}
    assert all(row.columns["part"] == "test" for row in read_rows(tmp_path / "out", "test"))


def test_mixing_repeats_and_leaves_out_by_plan_and_loses_nothing(tmp_path):
    write(tmp_path, pairs(texts(100)))
    write(tmp_path, pairs(texts(40, seed=1), "rare"), "b.jsonl")
    write(tmp_path, pairs(texts(60, seed=2), "hello"), "general.jsonl")
    mix = {"weights": {"a.jsonl": 0.5, "b.jsonl": 3}, "replay": {"files": ("general.jsonl",), "share": 0.2}}
    summary = run(tmp_path, train=("a.jsonl", "b.jsonl"), mix=mix)
    assert summary.rows_read == 200 == summary.rows_kept + summary.rows_quarantined
    files = summary.mix["files"]
    assert files["b.jsonl"]["seen_per_epoch"] == 3 * files["b.jsonl"]["rows"]
    assert 0.3 < files["a.jsonl"]["seen_per_epoch"] / files["a.jsonl"]["rows"] < 0.7
    encoded = [row.row_id for row in read_encoded(tmp_path / "out", "train")]
    assert len(encoded) == summary.mix["rows_seen_per_epoch"] > len(set(encoded)) == summary.splits["train"]
    assert summary.mix["replay"]["share"] == pytest.approx(0.2, abs=0.01)
    assert not any(row.source == "general.jsonl" for s in ("dev", "test") for row in read_rows(tmp_path / "out", s))
    with pytest.raises(ConfigError, match="names no file"):
        run(tmp_path, mix={"weights": {"c.jsonl": 2}})


def test_the_proof_is_recomputed_from_the_files_and_a_moved_row_breaks_it(tmp_path):
    some = texts(120)
    write(tmp_path, pairs(some))
    run(tmp_path)
    out = tmp_path / "out"
    assert verify_split(out).holds
    moved = tmp_path / "moved"
    shutil.copytree(out, moved)
    test_row = json.loads((out / "test.jsonl").read_text().splitlines()[0])
    words = test_row["messages"][0]["content"].split()
    test_row["messages"][0]["content"] = " ".join([*words, "extra"])
    test_row |= {"id": "0" * 16, "group": "other"}
    with open(moved / "train.jsonl", "a") as file:
        file.write(json.dumps(test_row) + "\n")
    found = verify_split(moved)
    assert [c.kind for c in found.crossings] == ["similar prompt"] and not found.holds


def test_traffic_of_another_kind_is_far_and_of_the_same_kind_is_not(tmp_path):
    write(tmp_path, pairs(texts(300)))
    run(tmp_path)
    rows = all_rows(tmp_path)
    assert compare(rows[:200], [], rows[200:]).far == []
    write(tmp_path, pairs([f"Why is my {text}? Please!" for text in texts(300, seed=9)]))
    run(tmp_path)
    far = compare(rows, [], all_rows(tmp_path)).far
    assert "asks with a question mark" in far and "turns" not in far


def test_quoted_evaluation_items_leave_training(tmp_path):
    some = texts(80)
    write(tmp_path, [*pairs(some[:60]), *pairs([f"{some[60]} {some[70]} {some[61]}"])])
    write(tmp_path, [{"q": some[70], "a": "x"}], "bench.jsonl")
    assert run(tmp_path).rows_quarantined == 0
    run(tmp_path, decontaminate=("bench.jsonl",))
    assert [(e.line, e.reason) for e in read_quarantine(tmp_path / "out" / "quarantine.jsonl")] == [
        (61, "quotes an evaluation item")
    ]


def test_the_style_of_the_answers_stands_beside_the_wished_one(tmp_path):
    formal = "The parcel is sent again. It arrives in three days."
    casual = "Hey, I'm on it!\n- we'll resend it\n- you're all set"
    rows = [{"prompt": text, "completion": casual if i % 4 == 0 else formal} for i, text in enumerate(texts(80))]
    write(tmp_path, rows)
    wish = {"words": (5, 30), "person": "third", "formality": "formal", "bullets": "never", "max_reading_grade": 6}
    summary = run(tmp_path, style=wish)
    signs = {one["sign"]: one for one in summary.checks["style"]["signs"]}
    assert signs["words"]["share"] == signs["reading grade"]["share"] == 1.0
    assert all(0.6 < signs[name]["share"] < 0.9 for name in ("person", "formality", "bullets"))
    assert sum(w.startswith("style: ") for w in summary.warnings) == 3
    assert "Style of the answers" in (tmp_path / "out" / "report.html").read_text()
    assert not any(w.startswith("style: ") for w in run(tmp_path, style=wish | {"min_share": 0.5}).warnings)
    with pytest.raises(DataError, match="as wished in person"):
        run(tmp_path, style=wish | {"policy": "refuse"})
    free = run(tmp_path).checks["style"]["signs"]
    assert [one["share"] for one in free] == [None] * 5 and "third 7" in free[1]["profile"]
