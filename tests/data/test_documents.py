"""Folders and whole files as rows: Markdown and HTML documents, lines or documents of text, links that lead out; data
of the hub, refused offline. White space that is part of the text, and answers that must parse."""

from __future__ import annotations

import gzip
import json
import os

import pytest

from luthier.config.data import DataSpec
from luthier.data.hub import fetch
from luthier.data.prepare import prepare
from luthier.data.read_documents import html_text
from luthier.data.sources import find_sources
from luthier.data.stored import read_rows
from luthier.data.turns import RowError
from luthier.data.written import check_parses
from luthier.errors import DataError
from tests.data.stub import WordCodec

PAGE = """<!DOCTYPE html><html><head><title>no</title><style>p {x}</style><script>var no = "<p>";</script></head>
<body><h1>The  kettle</h1><p>Fill it
with <b>cold</b> water &amp; wait.</p><ul><li>one</li><li>two</li></ul>
<pre>  def f():
      return 1</pre><table><tr><td>a</td><td>b</td></tr></table></body></html>"""
READABLE = "The kettle\n\nFill it with cold water & wait.\n\n- one\n- two\n\n  def f():\n      return 1\n\na\tb"


def prepared(folder, **spec):
    out = folder / "out"
    out.mkdir()
    settings = {"allow_no_dev": True, "split": {"train": 1, "dev": 0, "test": 0}, "max_quarantine_share": 1.0} | spec
    summary = prepare(DataSpec(**settings), codec=WordCodec(), sequence_len=512, out=out, base_dir=folder)
    return summary, read_rows(out, "train"), (out / "quarantine.jsonl").read_text()


def test_html_becomes_its_readable_text():
    assert html_text(PAGE) == READABLE


def test_a_folder_of_documents_is_a_row_a_file(tmp_path):
    docs = tmp_path / "docs"
    (docs / "deep").mkdir(parents=True)
    markdown = "# Title\n\n    code that is indented\n\n- item  \n"
    (docs / "a.md").write_text(markdown)
    (docs / "deep/b.html").write_text(PAGE)
    (docs / "deep/c.txt").write_text("a line of text\n\nanother line\n")
    (docs / "d.md.gz").write_bytes(gzip.compress(b"# Packed\n\nwith a second paragraph\n"))
    (docs / "short.md").write_text("hi\n")
    (docs / "latin.md").write_bytes("a caf\xe9 in the old town".encode("latin-1"))
    (docs / "dataset_info.json").write_text("{}")
    (docs / ".hidden.md").write_text("never seen")
    (docs / "image.png").write_bytes(b"\x89PNG")
    summary, rows, quarantine = prepared(tmp_path, train=("docs",))
    texts = {row.source: row.text for row in rows}
    assert texts["docs/a.md"] == markdown and texts["docs/deep/b.html"] == READABLE
    assert texts["docs/d.md.gz"].startswith("# Packed") and len([r for r in rows if r.source == "docs/deep/c.txt"]) == 2
    assert summary.rows_read == 7 == summary.rows_kept + summary.rows_quarantined and summary.rows_quarantined == 2
    assert "too short: 3 characters" in quarantine and "not UTF-8" in quarantine


def test_what_a_row_of_text_is_can_be_said(tmp_path):
    (tmp_path / "a.txt").write_text("first line of it\n\nsecond line of it\n")
    (tmp_path / "b.md").write_text("third line of it\nfourth line of it\n")
    files = ("a.txt", "b.md")
    assert len(prepared(tmp_path, train=files, text_unit="document")[1]) == 2
    (tmp_path / "out").rename(tmp_path / "out1")
    assert len(prepared(tmp_path, train=files, text_unit="line")[1]) == 4


def test_folders_without_data_and_links_that_lead_out_are_refused(tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match="holds no data file"):
        find_sources(("in",), "train", tmp_path)
    (tmp_path / "secret.md").write_text("secret")
    (tmp_path / "in/x.md").symlink_to(tmp_path / "secret.md")
    with pytest.raises(DataError, match="leads out"):
        find_sources(("in",), "train", tmp_path)
    (tmp_path / "in/x.md").unlink()
    (tmp_path / "in/y.md").write_text("fine")
    (tmp_path / "in/z.md").symlink_to(tmp_path / "in/y.md")
    assert [s.name for s in find_sources(("in",), "train", tmp_path)] == ["in/y.md"]


def test_hub_data_is_never_fetched_unasked(tmp_path):
    for address, words in (("hub:org/name@main/data/*.parquet", "not asked for"), ("hub:name", "not an address")):
        with pytest.raises(DataError, match=words) as caught:
            find_sources((address,), "train", tmp_path)
        assert caught.value.hint


@pytest.mark.skipif(os.environ.get("HF_HUB_OFFLINE") != "1", reason="would go online")
def test_hub_data_offline_says_what_to_do():
    with pytest.raises(DataError, match="could not be fetched") as caught:
        fetch("hub:luthier-test/no-such-data@main", (".jsonl",), allow_hub=True)
    assert "download the files" in caught.value.hint


ANSWERS = {
    "python": ("    return x + 1\n", "def f(:\n  pass", "Python"),
    "json": ('{\n  "a": [1, 2]\n}\n', '{"a": 1,}', "JSON"),
    "markdown": ("  - item\n\n      code\n", " \n", "empty answer"),
    "code": ("\tfor (;;) {}\n", "", "empty answer"),
}


@pytest.mark.parametrize("language", ANSWERS)
def test_white_space_of_code_markdown_and_json_is_kept_and_code_must_parse(tmp_path, language):
    good, bad, words = ANSWERS[language]
    rows = [{"prompt": "  indented question\n", "completion": good}, {"prompt": "other", "completion": bad}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary, kept, quarantine = prepared(tmp_path, train=("a.jsonl",), answer_language=language)
    assert [row.answer for row in kept] == [good] and kept[0].messages[0]["content"] == rows[0]["prompt"]
    assert words in quarantine and summary.rows_read == 2
    (tmp_path / "out").rename(tmp_path / "out1")
    assert prepared(tmp_path, train=("a.jsonl",), min_answer_chars=0)[1][0].answer == good.strip()


def test_fenced_blocks_are_what_must_parse():
    check_parses("Here:\n\n```python\ndef f():\n    return 1\n```\nand\n```sh\nls |\n```\n", "python")
    check_parses('~~~json\n{"a": 1}\n~~~', "json")
    check_parses("    x = 1\n    y = 2", "python")
    for answer in ("```python\ndef f(:\n```\n", "x = = 1", "f(" * 300, "\x00"):
        with pytest.raises(RowError, match="not Python"):
            check_parses(answer, "python")
    with pytest.raises(RowError, match="not JSON"):
        check_parses("[" * 100_000, "json")
