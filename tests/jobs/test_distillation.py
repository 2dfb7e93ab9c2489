"""A student with fewer layers through the CLI: cut, then taught by another project's build."""

import json

from luthier.errors import BaseModelError, ConfigError
from luthier.store.publish import read_manifest
from tests.jobs.test_objectives import conversations, trained
from tests.tiny import make_tiny_base


def test_a_cut_student_learns_from_another_projects_build(tmp_path, luthier):
    base = make_tiny_base(tmp_path / "base", num_hidden_layers=4)
    rows = "".join(json.dumps(row) + "\n" for row in conversations(80))
    (tmp_path / "rows.jsonl").write_text(rows)
    train = "train: {sequence_len: 160, micro_batch_tokens: 1024, learning_rate: 5e-3, num_threads: 1, num_epochs: 2}\n"
    text = "data: {train: [rows.jsonl]}\nship: {formats: [], parity_rows: 2}\n" + train
    teacher, student = tmp_path / "teacher.yaml", tmp_path / "student.yaml"
    teacher.write_text(f'model: {{base: "{base}"}}\noutput_dir: teacher\n{text}')
    student.write_text(
        f"model: {{base: ./cut}}\nloss: {{kind: distill, teacher: teacher}}\nadapter: {{method: full}}\n{text}"
    )

    cut = tmp_path / "cut"
    done = luthier("cut-layers", base, cut, "--keep", 2)
    assert done.exit_code == 0 and "2 layers of" in done.output and "(0, 3)" in done.output
    manifest = read_manifest(cut)
    assert manifest["kind"] == "base" and manifest["facts"]["layers"] == [0, 3]
    stands = luthier("cut-layers", base, cut, "--keep", 3)
    assert isinstance(stands.exception, ConfigError) and "stands already" in str(stands.exception)
    whole = luthier("cut-layers", base, tmp_path / "whole", "--keep", 4)
    assert isinstance(whole.exception, BaseModelError) and "4 of them cannot be kept" in str(whole.exception)
    assert not (tmp_path / "whole").exists()

    early = luthier("train", "-c", student)
    assert isinstance(early.exception, ConfigError) and "loss.teacher" in str(early.exception)
    assert "luthier build" in early.exception.hint
    assert luthier("build", "-c", teacher).exit_code == 0
    result = luthier("train", "-c", student)
    assert result.exit_code == 0, (result.output, result.exception)
    (merged,) = (tmp_path / "teacher").glob("build-*/merged")
    assert str(merged) in "".join(result.output.split("\n"))
    _, facts, _, dev = trained(student)
    assert dev[-1]["loss"] < 0.8 * facts["dev_before"]["loss"], "nearer to the teacher"

    assert luthier("build", "-c", teacher, "--set", "train.max_steps=1").exit_code == 0
    two = luthier("train", "-c", student)
    assert isinstance(two.exception, BaseModelError) and "2 builds" in str(two.exception)
