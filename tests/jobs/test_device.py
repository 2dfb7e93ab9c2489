"""train.device: never a CPU in silence. What was taken and why is said, recorded, and told by the doctor."""

import json

import pytest

from luthier.errors import ConfigError
from luthier.jobs import doctor_machine
from luthier.jobs.device import Gpu, choose_device
from luthier.store.publish import read_manifest
from tests.jobs.toy import make_texts, write_project

H100 = Gpu("570.1", "13.0", usable=True, name="H100", capability="sm_90", kernels=("sm_90",))
WITHOUT = {
    "this machine has no GPU": Gpu(),
    "is built for the CPU": Gpu(driver="550.54"),
    "cannot open the GPU (driver 450.1)": Gpu(driver="450.1", built_for="13.0"),
    "H100 is there, but luthier does not train on a GPU yet": H100,
}


@pytest.fixture
def project(tmp_path, tiny_base):
    return write_project(tmp_path, tiny_base, make_texts(60, seed=3))


@pytest.mark.parametrize("verb", ["train", "run"])
def test_cuda_that_cannot_be_had_is_an_error_before_anything_is_read(project, luthier, verb):
    (project.parent / "rows.csv").unlink()  # whoever reads it first says so
    done = luthier(verb, "-c", project, "--set", "train.device=cuda")
    assert isinstance(done.exception, ConfigError) and done.exception.exit_code == 2, done.output
    assert "train.device: cuda cannot be had: " in str(done.exception) and "auto" in done.exception.hint
    assert not (project.parent / "runs").exists()


@pytest.mark.parametrize("why", WITHOUT)
def test_each_reason_is_told(why):
    with pytest.raises(ConfigError) as error:
        choose_device("cuda", WITHOUT[why])
    assert why in str(error.value)


def test_auto_does_not_claim_a_gpu_that_it_would_not_use():
    assert str(choose_device("auto", Gpu())) == "cpu (train.device: auto; this machine has no GPU)"
    idle = choose_device("auto", H100)
    assert idle.taken == "cpu" and "H100 lies idle: luthier does not train on a GPU yet" in str(idle)
    told = doctor_machine.device("auto", H100)
    assert told.verdict == "note" and "lies idle" in told.found


def test_the_device_is_said_recorded_and_no_part_of_the_key(project, luthier):
    short = ("--set", "train.max_steps=1")
    done = luthier("train", "-c", project, *short)
    assert done.exit_code == 0 and done.output.count("training on cpu (train.device: auto; ") == 1, done.output
    (folder,) = (project.parent / "runs").glob("train-????????????")
    device = read_manifest(folder)["facts"]["device"]
    assert (device["asked"], device["taken"], device["tensors"]) == ("auto", "cpu", ["cpu"]) and device["why"]
    assert luthier("train", "-c", project, *short, "--set", "train.device=cpu").exit_code == 0
    assert list((project.parent / "runs").glob("train-????????????")) == [folder], "the same stage, reused"


def test_the_doctor_names_it_and_refuses_what_cannot_be_had(project, luthier):
    def found(*options):
        done = luthier("doctor", "-c", project, "--json")
        return done.exit_code, {one["what"]: one for one in json.loads(done.stdout)["findings"]}["device"]

    code, device = found()
    assert code == 0 and device["verdict"] == "ok" and device["found"].startswith("cpu (train.device: auto; ")
    project.write_text(project.read_text().replace("train: {", "train: {device: cuda, "))
    code, device = found()
    assert code == 1 and device["verdict"] == "problem" and "train.device: cuda cannot be had" in device["why"]
