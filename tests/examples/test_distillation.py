"""examples/distillation: student and twin differ in their loss alone, their sealed rows are new to the teacher, and the
five commands work one after the other."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.config.load import load_project
from tests.tiny import make_tiny_base

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FOLDER = EXAMPLES / "distillation"


def test_student_and_twin_differ_in_their_loss_alone():
    specs = {name: load_project(FOLDER / f"{name}.yaml").spec.model_dump(mode="json") for name in ("distill", "sft")}
    for spec in specs.values():
        del spec["goal"], spec["output_dir"]
    differ = {key for key in specs["sft"] if specs["sft"][key] != specs["distill"][key]}
    assert differ == {"loss"}
    assert (specs["distill"]["loss"]["nll_weight"], specs["sft"]["loss"]["kind"]) == (0.0, "sft")


def test_the_sealed_rows_are_the_teachers_too():
    """The same files, rendered and split alike: what is sealed here was sealed there."""
    teacher, student = (
        load_project(EXAMPLES / path).spec.data for path in ("support/luthier.yaml", "distillation/distill.yaml")
    )
    read = [one for one in type(teacher).model_fields if one not in ("train", "unlabelled", "json_schema")]
    assert [getattr(student, one) for one in read] == [getattr(teacher, one) for one in read]
    files = [(FOLDER / student.train[0]).parent.resolve(), (EXAMPLES / "support" / teacher.train[0]).parent.resolve()]
    assert files[0] == files[1]


@pytest.mark.slow
def test_the_whole_road_on_a_tiny_base(tmp_path, luthier):
    base = make_tiny_base(tmp_path / "base", num_hidden_layers=4)
    quick = [
        "train.sequence_len=2048", "train.micro_batch_tokens=2048", "train.max_steps=2", "data.limit_dev_rows=4",
        "ship.formats=[]", "ship.parity_rows=1",
    ]  # fmt: skip

    def build(path, *more):
        options = [word for value in (*quick, *more) for word in ("--set", value)]
        done = luthier("build", "-c", EXAMPLES / path, *options)
        assert done.exit_code == 0, (done.output, done.exception)

    build("support/luthier.yaml", f"model.base={base}", f"output_dir={tmp_path / 'teacher'}", "train.trackers=[]")
    assert luthier("cut-layers", base, tmp_path / "cut", "--keep", 2).exit_code == 0
    cut = f"model.base={tmp_path / 'cut'}"
    build("distillation/distill.yaml", cut, f"loss.teacher={tmp_path / 'teacher'}", f"output_dir={tmp_path / 'a'}")
    build("distillation/sft.yaml", cut, f"output_dir={tmp_path / 'b'}")
    command = [sys.executable, FOLDER / "check.py", "--rows", "4", "--outputs", tmp_path / "a", tmp_path / "b"]
    here = os.environ | {"PYTHONPATH": str(EXAMPLES.parent)}
    told = subprocess.run(command, capture_output=True, text=True, env=here)
    assert told.returncode == 1, (told.stdout, told.stderr)
    assert "4 test rows; both learnt from" in told.stdout and "json_exact" in told.stdout
    build("distillation/sft.yaml", cut, f"output_dir={tmp_path / 'c'}", "train.max_steps=3")
    command[-1] = tmp_path / "c"
    unequal = subprocess.run(command, capture_output=True, text=True, env=here)
    assert unequal.returncode != 0 and "did not learn from as many tokens" in unequal.stderr
