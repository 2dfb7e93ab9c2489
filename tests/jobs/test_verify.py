"""`luthier verify` on a real run: every kind of damage is named, link by link, and a moved folder keeps its history."""

import json
import os
import shutil
from pathlib import Path

import pytest

from luthier.bases.folder import file_digests
from luthier.bases.resolve import default_cache_dir
from luthier.jobs.verify import BROKEN
from luthier.store.provenance import environment
from luthier.store.publish import digest_file, digest_json, render_manifest, seal

STAGES = ("prepare", "train", "build", "evaluate", "published")


@pytest.fixture
def chain(untouched, toy_base, tmp_path):
    """A copy of a run that shipped, with its own raw data and base: folder of the project."""
    path, result = untouched
    assert result.exit_code == 0, result.output
    folder = tmp_path / "project"
    shutil.copytree(path.parent, folder)
    shutil.copytree(toy_base, folder / "base")
    return folder


@pytest.fixture
def verify(chain, luthier):
    """verify(folder, *options) -> (exit code, the links that are not ok, as JSON objects)."""

    def run(folder=chain / "runs", *options):
        result = luthier("verify", folder, "--base", chain / "base", "--json", *options)
        assert result.exit_code in (0, BROKEN), result.output
        told = json.loads(result.stdout)
        assert told["whole"] is (result.exit_code == 0)
        return result.exit_code, [link for link in told["links"] if link["status"] not in ("ok", "note")]

    return run


def stage(chain: Path, name: str) -> Path:
    (folder,) = (chain / "runs").glob(f"{name}-????????????")
    return folder


def flip(path: Path, at: int | None = None) -> None:
    data = bytearray(path.read_bytes() or b"\0")
    data[len(data) // 2 if at is None else at] ^= 1
    path.unlink()  # published files are hard links of built ones
    path.write_bytes(data)


def forge(folder: Path, **changes) -> None:
    """Rewrites a manifest as a forger would: with a new seal."""
    manifest = json.loads((folder / "manifest.json").read_text()) | changes
    manifest["seal"] = seal(manifest)
    (folder / "manifest.json").write_text(render_manifest(manifest))


def test_a_whole_run_holds_and_tells_every_stage(chain, verify, luthier):
    assert verify() == (0, [])
    shown = luthier("verify", chain / "runs", "--base", chain / "base").output
    assert all(stage(chain, name).name in shown for name in STAGES) and "every link holds" in shown
    assert digest_file(stage(chain, "published") / "manifest.json") in shown


def test_every_manifest_pins_sources_and_libraries(chain):
    rows = digest_file(chain / "rows.csv")
    for name in STAGES:
        made = json.loads((stage(chain, name) / "manifest.json").read_text())["provenance"]
        assert made["data"]["files"] == {"rows.csv": rows} and made["tokenizer"]["template_sha256"]
        assert made["environment"]["libraries"]["torch"]["version"].startswith("2.")
        assert len(made["environment"]["luthier"]["sha256"]) == 64
        assert name == "prepare" or made["base"]["files"]["model.safetensors"] == digest_file(
            chain / "base/model.safetensors"
        )


@pytest.mark.parametrize("name", STAGES)
def test_one_flipped_byte_in_any_file_is_named(chain, verify, name):
    folder = stage(chain, name)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        whole = path.read_bytes()
        for at in {0, len(whole) // 2, len(whole) - 1} if path.name == "manifest.json" else {len(whole) // 2}:
            flip(path, at)
            code, broken = verify()
            assert code == BROKEN and any(str(path) in link["what"] for link in broken), (path, at, broken)
            path.write_bytes(whole)
    assert verify() == (0, [])


def test_a_missing_and_a_planted_file_are_named(chain, verify):
    adapter = stage(chain, "train") / "adapter"
    (adapter / "adapter_config.json").unlink()
    (adapter / "modeling.py").write_text("import os")
    _, broken = verify()
    named = {Path(link["what"].split(":")[0]).name: link["found"] for link in broken}
    assert named == {"adapter_config.json": "nothing", "modeling.py": "a file"}


def test_a_planted_link_out_of_the_folder_is_named(chain, verify):
    (stage(chain, "build") / "merged" / "extra").symlink_to("/nowhere")
    assert "extra: the manifest knows no such file" in verify()[1][0]["what"]


def test_swapped_manifests_are_named(chain, verify):
    one, other = (stage(chain, name) / "manifest.json" for name in ("prepare", "train"))
    left, right = one.read_text(), other.read_text()
    one.write_text(right), other.write_text(left)
    code, broken = verify()
    told = " ".join(link["what"] for link in broken)
    assert code == BROKEN and f"{one.parent.name} is named by its stage and key" in told
    assert f"{other.parent.name} is named by its stage and key" in told


def test_a_changed_raw_file_is_named_with_both_digests(chain, verify):
    before = digest_file(chain / "rows.csv")
    with open(chain / "rows.csv", "a") as file:
        file.write("one more,yes\n")
    code, broken = verify()
    assert code == BROKEN and len(broken) == 1
    assert broken[0]["what"] == f"raw file {chain / 'rows.csv'}"
    assert (broken[0]["expected"], broken[0]["found"]) == (before, digest_file(chain / "rows.csv"))


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", "chat_template.jinja"])
def test_a_replaced_base_is_named_by_its_file(chain, verify, name, monkeypatch, tmp_path):
    path = chain / "base" / name
    stat = path.stat()
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    file_digests(chain / "base", default_cache_dir())  # what stages remember by size and time must not be believed
    path.write_bytes(path.read_bytes()[:-1] + b" ")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as old and as long as before
    code, broken = verify()
    assert code == BROKEN and [link["what"] for link in broken] == [f"base file {path}"]


def test_a_base_without_weights_and_an_added_file_are_named(chain, verify):
    (chain / "base/special_tokens_map.json").write_text("{}")
    assert "special_tokens_map.json" in verify()[1][0]["what"]
    (chain / "base/model.safetensors").unlink()
    assert verify()[1][0]["what"].startswith("base: ") and verify()[0] == BROKEN


def test_a_forged_stage_is_found_by_its_key_and_by_its_child(chain, verify):
    folder = stage(chain, "train")
    manifest = json.loads((folder / "manifest.json").read_text())
    inputs = manifest["inputs"] | {"train": manifest["inputs"]["train"] | {"learning_rate": 1e-4}}
    forge(folder, inputs=inputs)
    told = [link["what"] for link in verify()[1]]
    assert f"key of {folder.name}, computed anew from its inputs" in told
    flip(folder / "metrics.jsonl")
    for entry in manifest["files"]:
        entry["sha256"] = digest_file(folder / entry["name"])
    forge(folder, inputs=manifest["inputs"], files=manifest["files"])
    told = [link["what"] for link in verify()[1]]
    assert told == [f"input train of {stage(chain, 'build').name} is {folder.name}"], "the stage itself looks whole"


def test_a_forged_base_digest_contradicts_itself(chain, verify):
    folder = stage(chain, "evaluate")
    made = json.loads((folder / "manifest.json").read_text())["provenance"]
    made["base"]["files"]["model.safetensors"] = "0" * 64
    forge(folder, provenance=made)
    assert "digest of the base's files" in [link["what"] for link in verify()[1]]


def test_a_published_folder_elsewhere_keeps_its_history(chain, verify, luthier, tmp_path):
    moved = tmp_path / "elsewhere" / "support-model"
    moved.parent.mkdir()
    shutil.move(stage(chain, "published"), moved)
    code, links = verify(moved)
    assert code == 0 and [link["status"] for link in links] == ["absent"], "only the raw file is not here"
    assert verify(moved, "--data", chain) == (0, [])
    assert verify(moved, "--strict")[0] == BROKEN
    alone = " ".join(luthier("verify", moved).output.split())
    assert "it is not here: raw file" in alone and "every link holds" in alone
    flip(chain / "rows.csv")
    assert "rows.csv" in verify(moved, "--data", chain)[1][0]["what"]


def test_a_published_model_must_be_the_one_that_was_built(chain, verify, tmp_path):
    """Another model with a manifest of its own in place of the judged one: each file is whole, the chain is not."""
    folder = shutil.copytree(stage(chain, "published"), tmp_path / "moved")
    weights = folder / "merged/model.safetensors"
    flip(weights)
    manifest = json.loads((folder / "manifest.json").read_text())
    files = [
        e | ({"sha256": digest_file(weights)} if e["name"].startswith("merged/model.") else {})
        for e in manifest["files"]
    ]
    forge(folder, files=files)
    told = [link["what"] for link in verify(folder)[1] if link["status"] == "broken"]
    assert told == ["merged/model.safetensors of moved is the one of stage build"]


def test_a_stage_built_again_is_no_break(chain, verify, luthier):
    folder = stage(chain, "prepare")
    manifest = json.loads((folder / "manifest.json").read_text())
    forge(folder, facts=manifest["facts"] | {"took_s": 99.0})
    assert verify() == (0, [])
    assert "was built again since, with the same content" in luthier("verify", chain / "runs").output


def test_other_versions_and_other_files_of_a_library_are_told(chain, verify, luthier, monkeypatch):
    """A note, no break: a result does not become another one because it is looked at elsewhere."""
    here = environment()
    here["libraries"]["torch"] = here["libraries"]["torch"] | {"version": "9.9.9"}
    here["libraries"]["numpy"] = {"version": here["libraries"]["numpy"]["version"]}
    monkeypatch.setattr("luthier.jobs.chain.environment", lambda: here)
    said = " ".join(luthier("verify", chain / "runs", "--base", chain / "base").output.split())
    assert verify() == (0, []) and "here 9.9.9" in said and "has other files here" in said


def test_what_is_no_run_is_refused(luthier, tmp_path, verify):
    assert luthier("verify", tmp_path / "none").exception.exit_code == 2
    (tmp_path / "empty").mkdir()
    code, broken = verify(tmp_path / "empty")
    assert code == BROKEN and "no manifest.json" in broken[0]["what"]
    (tmp_path / "empty/manifest.json").write_text('{"files": [], "facts": {}, "provenance": {"stage": 3}}')
    assert "no record of its making" in verify(tmp_path / "empty")[1][0]["what"]
    assert digest_json({}) != seal({})


def test_older_stages_of_a_run_folder_are_named_and_left_out(chain, luthier):
    old = shutil.copytree(stage(chain, "evaluate"), chain / "runs/evaluate-000000000000")
    os.utime(old / "manifest.json", (0, 0))
    shown = luthier("verify", chain / "runs", "--base", chain / "base")
    assert shown.exit_code == 0 and "older stages, not looked at: evaluate-000000000000" in shown.output
    assert luthier("verify", old).exit_code == BROKEN
