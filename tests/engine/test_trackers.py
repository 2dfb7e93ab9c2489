"""Trackers through accelerate, read back from their own files."""

import struct

import pytest
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
    mlflow = pytest.importorskip("mlflow")
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


def test_wandb_offline(tmp_path, monkeypatch):
    """An offline run folder with every step's loss in it; nothing is sent."""
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.delenv("WANDB_MODE", raising=False)
    result = run(small_model(), spec_of(trackers=("wandb",)), tmp_path / "r")
    (path,) = (tmp_path / "r" / "trackers").rglob("run-*.wandb")
    losses = []
    for payload in _wandb_records(path):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(payload)
        items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
        losses += [float(items["train/loss"])] if "train/loss" in items else []
    assert len(losses) == result.steps


def test_unknown_trackers_are_refused_with_the_known_ones(tmp_path):
    """The error lists what accelerate knows."""
    with pytest.raises(ConfigError, match="'tensorbord' is not a tracker") as error:
        run(small_model(), spec_of(trackers=("tensorbord",)), tmp_path)
    assert "tensorboard" in error.value.hint and "mlflow" in error.value.hint
