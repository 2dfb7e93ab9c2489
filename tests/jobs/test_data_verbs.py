"""The data verbs as a newcomer meets them: small and hostile sets, wrong files, wrong flags, a second run."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from luthier.errors import ArtifactError, LuthierError
from tests.jobs.toy import make_texts


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def pairs(num: int, seed: int = 5) -> list[dict]:
    return [{"prompt": text, "completion": label} for text, label in make_texts(num, seed)]


@pytest.fixture
def project(tmp_path, tiny_base):
    """60 rows on the tiny base."""
    write(tmp_path / "rows.jsonl", pairs(60))
    path = tmp_path / "luthier.yaml"
    path.write_text(
        f'model: {{base: "{tiny_base}"}}\ndata: {{train: [rows.jsonl]}}\n'
        "train: {sequence_len: 128, micro_batch_tokens: 128}\noutput_dir: runs\n"
    )
    return path


TEXT = (".jsonl", ".json", ".html", ".md")


def words(result) -> str:
    """What was printed, without the folds of lines."""
    return " ".join(result.output.split())


def test_a_set_smaller_than_one_step_is_told_and_a_larger_one_is_not(project, luthier):
    large = luthier("prepare", "-c", project)
    assert large.exit_code == 0 and "less than one step" not in large.output
    small = luthier("prepare", "-c", project, "--set", "train.gradient_accumulation_steps=64")
    assert small.exit_code == 0 and "less than one step may take (8,192 tokens" in words(small)
    folders = list(project.parent.glob("runs/prepare-*"))
    assert len(folders) == 1, "how steps are made is no matter of the preparation"


@pytest.fixture
def prepared(project, luthier):
    """The folder of a preparation."""
    assert luthier("prepare", "-c", project).exit_code == 0
    return next(project.parent.glob("runs/prepare-*"))


def refused(luthier, *arguments) -> str:
    """The message and the hint of an error that luthier raised on purpose."""
    result = luthier(*arguments)
    assert isinstance(result.exception, LuthierError) and result.exception.hint, (arguments, result.exception)
    return f"{result.exception} | {result.exception.hint}"


def test_verify_split_and_diff_of_a_whole_preparation(project, prepared, luthier):
    assert "holds: nothing crosses" in words(luthier("verify-split", prepared))
    same = luthier("data", "diff", prepared, prepared)
    assert same.exit_code == 0 and "moved" not in same.output
    assert luthier("prepare", "-c", project, "--set", "data.split={train: 0.5, dev: 0.2, test: 0.3}").exit_code == 0
    other = next(path for path in project.parent.glob("runs/prepare-*") if path != prepared)
    assert luthier("data", "diff", prepared, other).exit_code == 0
    back = luthier("data", "diff", other, prepared)
    assert back.exit_code == 1 and "rows that were judged on are trained on now" in words(back)


@pytest.mark.parametrize("wrong", ["nowhere", "rows.jsonl", ".", "runs", "runs/PREPARED/train.jsonl"])
def test_what_is_no_preparation_is_refused_with_the_one_that_is_near(project, prepared, luthier, wrong):
    path = project.parent / wrong.replace("PREPARED", prepared.name)
    for verb in (("verify-split", path), ("data", "diff", prepared, path), ("data", "diff", path, prepared)):
        said = refused(luthier, *verb)
        assert "expected a folder of `luthier prepare`" in said and f"did you mean {prepared}" in said
        assert luthier(*verb).exception.exit_code == 2, "1 is what a split that does not hold ends with"


TORN = {
    "a line that is no JSON": ("train.jsonl", "oops\n"),
    "a row that is a list": ("train.jsonl", "[]\n"),
    "turns that are numbers": ("train.jsonl", '{"id": "a", "messages": [3], "source": "x", "line": 1}\n'),
    "a turn without content": (
        "train.jsonl",
        '{"id": "a", "messages": [{"role": "user"}], "source": "x", "line": 1}\n',
    ),
    "a summary that is a list": ("summary.json", "[]"),
    "a summary of something else": ("summary.json", '{"rows": 1}'),
    "a summary without a proof": ("summary.json", '{"proof": null}'),
    "no summary": ("summary.json", None),
}


@pytest.mark.parametrize("case", TORN)
def test_a_torn_preparation_is_named_and_never_passes(prepared, luthier, case, tmp_path):
    name, content = TORN[case]
    torn = shutil.copytree(prepared, tmp_path / "torn")
    (torn / "manifest.json").unlink()
    (torn / name).unlink()
    if content is not None:
        (torn / name).write_text(content)
    for verb in (("verify-split", torn), ("data", "diff", prepared, torn), ("data", "diff", torn, prepared)):
        error = luthier(*verb).exception
        assert isinstance(error, ArtifactError) and name in str(error) and error.hint, (verb, error)


def test_files_that_are_not_as_written_make_no_diff(prepared, luthier, tmp_path):
    """Without its dev rows, A would say that nothing judged is trained on."""
    torn = shutil.copytree(prepared, tmp_path / "torn")
    (torn / "dev.jsonl").unlink()
    assert "dev.jsonl: missing" in refused(luthier, "data", "diff", torn, prepared)
    checked = luthier("verify-split", torn)
    assert checked.exit_code == 1 and "files that are not as written: 1" in words(checked)


def test_traffic_is_compared_and_what_is_none_is_refused(project, luthier, tmp_path):
    like = write(tmp_path / "like.jsonl", [{"prompt": text} for text, _ in make_texts(80, 9)])
    page = tmp_path / "new" / "page.html"
    result = luthier("data", "compare", like, "-c", project, "--policy", "refuse", "-o", page)
    assert result.exit_code == 0 and "far" not in result.output.split("compared by")[1] and page.read_text()
    foreign = [{"prompt": f"Quel est le prix de la livraison du colis {i} vers la ville de Lyon ?"} for i in range(60)]
    far = luthier("data", "compare", write(tmp_path / "far.jsonl", foreign), "-c", project, "--policy", "refuse")
    assert far.exit_code == 1 and "refused" in far.output
    assert "prompt length (words) is far: '6 to 16 words' is 100% of the traffic, 0% of train" in words(far)
    (tmp_path / "broken.jsonl").write_text("oops\n" * 3)
    write(tmp_path / "other.jsonl", [{"foo": "x", "bar": 1}] * 3)
    for name, said in (
        ("broken.jsonl", "no row could be read: 3 x not valid JSON"),
        ("other.jsonl", "no known format fits its columns: foo, bar"),
        ("none.jsonl", "no such file"),
    ):
        assert said in refused(luthier, "data", "compare", tmp_path / name, "-c", project)
    assert "column is called prompt" in refused(luthier, "data", "compare", tmp_path / "other.jsonl", "-c", project)
    assert "is a folder" in refused(luthier, "data", "compare", like, "-c", project, "-o", tmp_path)


@pytest.mark.parametrize("name", ["../outside", "", ".hidden", "a/b", "x" * 65, "a b"])
def test_a_frozen_set_is_written_under_a_plain_name_only(project, luthier, name):
    before = sorted(project.parent.rglob("*"))
    assert "cannot be the name of a frozen set" in refused(luthier, "data", "freeze", "-c", project, "--name", name)
    assert sorted(project.parent.rglob("*")) == before
    assert not (project.parent.parent / "outside.jsonl").exists()


def test_freezing_twice_is_refused_and_the_rows_stay_out_of_training(project, luthier):
    assert luthier("data", "freeze", "-c", project, "--name", "v1").exit_code == 0
    assert "is frozen already" in refused(luthier, "data", "freeze", "-c", project, "--name", "v1")
    again = luthier("prepare", "-c", project, "--set", "data.split_seed=7")
    assert again.exit_code == 0
    frozen = {json.loads(line)["id"] for line in (project.parent / "frozen/v1.jsonl").read_text().splitlines()}
    newest = max(project.parent.glob("runs/prepare-*"), key=lambda path: path.stat().st_mtime_ns)
    trained = {json.loads(line)["id"] for line in (newest / "train.jsonl").read_text().splitlines()}
    assert frozen and not frozen & trained


def test_conversions_say_what_to_do_and_leave_the_source_alone(luthier, tmp_path):
    source = write(tmp_path / "rows.jsonl", pairs(20))
    before = source.read_bytes()
    made = luthier("convert", source, tmp_path / "deep/er/out.parquet", "--to", "messages")
    assert made.exit_code == 0 and "20 rows read = 20 written + 0 quarantined" in words(made)
    write(tmp_path / "other.jsonl", [{"foo": "x", "bar": 1}] * 3)
    os.symlink("loop", tmp_path / "loop")
    os.symlink("rows.jsonl", tmp_path / "link.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    out = tmp_path / "out.jsonl"
    for arguments, said, hint in (
        ((source, out, "--from", "wat"), "--from wat: no such format", "choose of"),
        ((source, out, "--to", "wat"), "--to wat", "choose of"),
        ((source, out, "--to", "kto"), "kto needs: label", "choose another --to"),
        ((source, tmp_path / "out.txt"), "nothing but a text column", "ends in .jsonl"),
        ((source, tmp_path / "out.xlsx"), "its name says no container", "end it in"),
        ((tmp_path / "other.jsonl", out, "--to", "messages"), "no known format fits", "--from"),
        ((tmp_path / "empty.jsonl", out), "is empty", ""),
        ((tmp_path / "loop", out), "cannot be read", ""),
        ((tmp_path / "none.jsonl", out), "no such file", ""),
        ((source, tmp_path / "link.jsonl", "--force"), "is the source itself", ""),
        ((source, source, "--force"), "is the source itself", ""),
    ):
        told = refused(luthier, "convert", *arguments)
        assert said in told and hint in told.partition(" | ")[2], told
        assert not out.exists() and source.read_bytes() == before


def test_deidentification_leaves_nothing_in_the_folder_and_touches_nothing_when_off(project, luthier):
    """On: no file of the folder holds a name, a date or a number, in turns or other columns. Off: all stay as given."""
    private = ["Maria Alvarez", "03/14/2021", "555-201-7788", "MRN 4471902"]
    note = "Patient {} was seen on {}, call {}, {}. The wound is clean."
    rows = [{**row, "note": note.format(*private)} for row in pairs(60)]
    rows[0]["prompt"] = note.format(*private)
    write(project.parent / "rows.jsonl", rows)
    texts = {}
    for policy in ("redact", "off"):
        out = ("--set", f"output_dir={policy}", "--set", f"data.checks.deidentify={policy}")
        assert luthier("prepare", "-c", project, *out).exit_code == 0
        (folder,) = project.parent.glob(f"{policy}/prepare-*")
        texts[policy] = "".join(path.read_text() for path in folder.glob("*.*") if path.suffix in TEXT)
    assert not [value for value in private for part in value.split() if part in texts["redact"] and part != "MRN"]
    assert "[NAME_1]" in texts["redact"] and "The wound is clean." in texts["redact"]
    assert all(value in texts["off"] for value in private) and "[NAME_1]" not in texts["off"]
