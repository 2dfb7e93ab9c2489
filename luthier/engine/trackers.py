"""Experiment trackers by name through accelerate (tensorboard, wandb, mlflow, trackio, ...): never a client of our own.

Everything stays on this machine unless the user's environment says otherwise: W&B runs offline and MLflow writes a
file store under the run folder, each only when its own variable (WANDB_MODE, MLFLOW_TRACKING_URI) is unset.

A resumed run does some steps again that a killed session has already sent. `trackers/sent.jsonl` has what each tracker
was sent, written before the sending, so that no point is sent twice; and the ids under which W&B and MLflow know the
run, so that it stays one run there.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.errors import ConfigError
from luthier.store.metrics import MetricsLog

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

log = logging.getLogger(__name__)
Scalar = int | float | str | bool


class Trackers:
    """All trackers of a run, logged to as one."""

    def __init__(self, names: tuple[str, ...], run_dir: Path, settings: dict[str, Any], identity: str) -> None:
        """Opens the trackers. identity: digest of what makes it the same run. Raises ConfigError for an unknown name
        and for a package that is not installed."""
        self._open: dict[str, GeneralTracker] = {}
        if not names:
            return
        self.identity, self._sent = identity, MetricsLog(run_dir / "trackers" / "sent.jsonl")
        known = [record for record in self._sent.read() if record["run"] == identity]
        ids = {record["tracker"]: record["id"] for record in known if "id" in record}
        self._last = {(record["tracker"], record["kind"]): record["step"] for record in known if "kind" in record}
        flat = {key: value if isinstance(value, Scalar) else str(value) for key, value in settings.items()}
        for name in names:
            tracker = _make(name, run_dir, ids.get(name))
            try:
                self._start(name, tracker, flat, is_known=name in ids)
            except ImportError as error:
                hint = f"pip install {name}"
                raise ConfigError(f"train.trackers: {name} is not installed ({error})", hint=hint) from None
            except Exception as error:  # anything: a server that is away must not keep a run from starting
                log.warning("%s could not be opened and is let go: %s", name, error)

    def _start(self, name: str, tracker: GeneralTracker, settings: dict[str, Any], *, is_known: bool) -> None:
        tracker.start()
        self._open[name] = tracker
        if is_known:  # its settings stand there since it began, and MLflow takes no other value for one
            return
        tracker.store_init_configuration(settings)
        if found := _id_of(name, tracker):
            self._sent.append({"run": self.identity, "tracker": name, "id": found})

    def log(self, kind: str, figures: dict[str, float], step: int) -> None:
        """Sends the figures of `step` to every tracker that has not had them. One that fails is let go: a server that
        is away must not end a run, and metrics.jsonl has every figure."""
        for name, tracker in list(self._open.items()):
            if step <= self._last.get((name, kind), -1):
                continue
            self._last[name, kind] = step
            self._sent.append({"run": self.identity, "tracker": name, "kind": kind, "step": step})
            try:
                tracker.log({f"{kind}/{what}": value for what, value in figures.items()}, step=step)
            except Exception as error:  # anything: it is another project's client
                del self._open[name]
                log.warning("%s failed at step %d and is let go: %s", name, step, error)

    def finish(self) -> None:
        """Flushes and closes every tracker."""
        for name, tracker in self._open.items():
            try:
                tracker.finish()
            except Exception as error:
                log.warning("%s could not be closed: %s", name, error)


def _make(name: str, run_dir: Path, run_id: str | None) -> GeneralTracker:
    """The tracker, not yet started. run_id: under which it knows this run, None for a new one."""
    from accelerate import PartialState  # both cost start-up time, and few runs track anything
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState()  # W&B's tracker writes to accelerate's log, which asks for it; the others make it on their way
    if name not in LOGGER_TYPE_TO_CLASS:
        known = ", ".join(sorted(LOGGER_TYPE_TO_CLASS))
        raise ConfigError(f"train.trackers: {name!r} is not a tracker", hint=f"known are {known}")
    folder = run_dir / "trackers"
    options: dict[str, Any] = {}
    if name == "wandb":
        os.environ.setdefault("WANDB_MODE", "offline")
        options = {"dir": str(folder), "id": run_id, "resume": "allow" if run_id else None}
    elif name == "mlflow":
        os.environ.setdefault("MLFLOW_TRACKING_URI", (folder / "mlruns").resolve().as_uri())
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        options = {"run_id": run_id}
    elif LOGGER_TYPE_TO_CLASS[name].requires_logging_directory:
        options["logging_dir"] = str(folder)
    try:
        return LOGGER_TYPE_TO_CLASS[name](run_dir.name, **options)
    except ImportError as error:
        raise ConfigError(f"train.trackers: {name} is not installed ({error})", hint=f"pip install {name}") from None


def _id_of(name: str, tracker: Any) -> str:
    """Under which W&B and MLflow know the run; '' for trackers that go by its name."""
    if name == "wandb":
        return str(tracker.tracker.id)
    return str(tracker.tracker.info.run_id) if name == "mlflow" else ""
