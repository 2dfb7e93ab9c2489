"""Trackers through accelerate, read back from their own files."""

import struct
from typing import ClassVar

import mlflow
import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from luthier.errors import ConfigError
from tests.engine.small import run, small_model, spec_of


def test_tensorboard(tmp_path):
    """Every step's figures and every evaluation lie in the event file, at their steps."""
    result = run(small_model(), spec_of(trackers=("tensorboard",)), tmp_path / "r")
    folders = {path.parent for path in (tmp_path / "r" / "trackers").rglob("events.*")}
    events = [EventAccumulator(str(folder)).Reload() for folder in folders]
    scalars = {tag: event.Scalars(tag) for event in events for tag in event.Tags()["scalars"]}
    assert [point.step for point in scalars["train/loss"]] == list(range(1, result.steps + 1))
    assert scalars["dev/loss"][-1].value == pytest.approx(result.history[-1]["loss"], rel=1e-6)
    assert {"train/learning_rate", "train/grad_norm", "train/tokens_per_s"} <= scalars.keys()


def test_mlflow_file_store(tmp_path, monkeypatch):
    """Metrics and settings read back from the run folder's own file store; no server."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    result = run(small_model(), spec_of(trackers=("mlflow",)), tmp_path / "r")
    mlflow.set_tracking_uri((tmp_path / "r" / "trackers" / "mlruns").as_uri())
    client = mlflow.MlflowClient()
    (experiment,) = client.search_experiments(filter_string="name = 'r'")
    (found,) = client.search_runs([experiment.experiment_id])
    assert [m.step for m in client.get_metric_history(found.info.run_id, "train/loss")] == list(
        range(1, result.steps + 1)
    )
    assert float(found.data.params["learning_rate"]) == 1e-2
    assert found.data.metrics["dev/loss"] == pytest.approx(result.history[-1]["loss"])


def _wandb_records(path):
    """Payloads of a .wandb file: LevelDB's log format (32 KiB blocks of crc, length, type) after a 7-byte header."""
    data, place, payload = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        length, kind = struct.unpack_from("<HB", data, place + 4)
        payload += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield payload
            payload = b""
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768


@pytest.mark.slow
def test_wandb_offline(tmp_path, monkeypatch):
    """An offline run folder with every step's loss in it; nothing is sent."""
    monkeypatch.delenv("WANDB_MODE", raising=False)
    result = run(small_model(), spec_of(trackers=("wandb",)), tmp_path / "r")
    (path,) = (tmp_path / "r" / "trackers").rglob("run-*.wandb")
    assert len(_wandb_losses(path)) == result.steps


def _wandb_losses(path):
    """Training losses of an offline run's file, in order."""
    from wandb.proto import wandb_internal_pb2

    losses = []
    for payload in _wandb_records(path):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(payload)
        items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
        losses += [float(items["train/loss"])] if "train/loss" in items else []
    return losses


class Killed(Exception):
    """Stands for a kill: nothing of luthier handles it."""


def cut_and_go_on(folder, tracker):
    """Killed at step 6 with a checkpoint of step 3, twice, then run to its end. Steps 4 and 5 are done three times."""

    def kill_at(last):
        def progress(done, total, **figures):
            if done == last:
                raise Killed

        return progress

    for last in (6, 6):
        with pytest.raises(Killed):
            spec = spec_of(trackers=(tracker,), save_steps=3)
            run(small_model(), spec, folder, progress=kill_at(last))
    assert max(int(path.name[5:]) for path in (folder / "checkpoints").glob("step-*")) == 3
    return run(small_model(), spec_of(trackers=(tracker,), save_steps=3, save_total_limit=3), folder)


def test_a_resumed_run_is_one_curve_in_tensorboard(tmp_path):
    result = cut_and_go_on(tmp_path / "r", "tensorboard")
    (folder,) = {path.parent for path in (tmp_path / "r" / "trackers").rglob("events.*") if path.parent.name == "r"}
    events = EventAccumulator(str(folder), purge_orphaned_data=False).Reload()
    assert [point.step for point in events.Scalars("train/loss")] == list(range(1, result.steps + 1))
    assert [point.step for point in events.Scalars("dev/loss")] == [record["step"] for record in result.history]


def test_a_resumed_run_is_one_run_in_mlflow(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    mlflow.set_tracking_uri((tmp_path / "r" / "trackers" / "mlruns").as_uri())  # what another test set stays set
    result = cut_and_go_on(tmp_path / "r", "mlflow")
    client = mlflow.MlflowClient()
    (experiment,) = client.search_experiments(filter_string="name = 'r'")
    (found,) = client.search_runs([experiment.experiment_id])
    steps = [m.step for m in client.get_metric_history(found.info.run_id, "train/loss")]
    assert steps == list(range(1, result.steps + 1))


@pytest.mark.slow
def test_a_resumed_run_is_one_run_in_wandb(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    result = cut_and_go_on(tmp_path / "r", "wandb")
    paths = sorted((tmp_path / "r" / "trackers").rglob("run-*.wandb"))
    assert len({path.stem for path in paths}) == 1, "one id"
    assert sum(map(len, map(_wandb_losses, paths))) == result.steps


class Elsewhere:
    """Stands for any other of accelerate's trackers: keeps what it is sent."""

    requires_logging_directory = False
    sent: ClassVar[list] = []

    def __init__(self, run_name):
        pass

    def start(self):
        pass

    def store_init_configuration(self, values):
        pass

    def log(self, values, step):
        self.sent.append((next(iter(values)).split("/")[0], step))

    def finish(self):
        pass


@pytest.fixture
def elsewhere(monkeypatch):
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "elsewhere", Elsewhere)
    Elsewhere.sent.clear()
    return Elsewhere.sent


def test_any_other_tracker_is_sent_each_point_once(tmp_path, elsewhere):
    result = cut_and_go_on(tmp_path / "r", "elsewhere")
    assert [step for kind, step in elsewhere if kind == "train"] == list(range(1, result.steps + 1))
    assert [step for kind, step in elsewhere if kind == "dev"] == [record["step"] for record in result.history]


def test_another_run_in_the_same_folder_is_sent_whole(tmp_path, elsewhere):
    """What another configuration sent before its first checkpoint says nothing of this one."""

    def progress(done, total, **figures):
        if done == 3:
            raise Killed

    with pytest.raises(Killed):
        run(small_model(), spec_of(trackers=("elsewhere",)), tmp_path / "r", progress=progress)
    assert elsewhere.pop() == ("train", 2)
    elsewhere.clear()
    result = run(small_model(), spec_of(trackers=("elsewhere",), learning_rate=1e-3), tmp_path / "r")
    assert [step for kind, step in elsewhere if kind == "train"] == list(range(1, result.steps + 1))


def test_a_tracker_that_cannot_be_opened_is_let_go(tmp_path, elsewhere, monkeypatch, caplog):
    def away(self):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(Elsewhere, "start", away)
    assert run(small_model(), spec_of(trackers=("elsewhere",), max_steps=2), tmp_path / "r").steps == 2
    assert "elsewhere could not be opened and is let go: no route to host" in caplog.text and not elsewhere


@pytest.mark.parametrize(
    ("method", "words"), [("log", "failed at step 1 and is let go"), ("finish", "could not be closed")]
)
def test_a_tracker_that_fails_on_the_way_does_not_end_the_run(tmp_path, elsewhere, monkeypatch, caplog, method, words):
    tries = []

    def away(self, *args, **kwargs):
        tries.append(args)
        raise ConnectionError("connection reset")

    monkeypatch.setattr(Elsewhere, method, away)
    assert run(small_model(), spec_of(trackers=("elsewhere",), max_steps=3), tmp_path / "r").steps == 3
    assert f"elsewhere {words}: connection reset" in caplog.text and len(tries) == 1


def test_unknown_trackers_are_refused_with_the_known_ones(tmp_path):
    """The error lists what accelerate knows."""
    with pytest.raises(ConfigError, match="'tensorbord' is not a tracker") as error:
        run(small_model(), spec_of(trackers=("tensorbord",)), tmp_path)
    assert "tensorboard" in error.value.hint and "mlflow" in error.value.hint
