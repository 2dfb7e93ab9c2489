"""Experiment trackers by name through accelerate (tensorboard, wandb, mlflow, trackio, ...): never a client of our own.

Everything stays on this machine unless the user's environment says otherwise: W&B runs offline and MLflow writes a
file store under the run folder, each only when its own variable (WANDB_MODE, MLFLOW_TRACKING_URI) is unset.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.errors import ConfigError

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

log = logging.getLogger(__name__)
Scalar = int | float | str | bool


class Trackers:
    """All trackers of a run, logged to as one."""

    def __init__(self, names: tuple[str, ...], run_dir: Path, settings: dict[str, Any]) -> None:
        """Opens the trackers. Raises ConfigError for an unknown name and for a package that is not installed."""
        self._open: list[GeneralTracker] = [_open(name, run_dir) for name in names]
        flat = {key: value if isinstance(value, Scalar) else str(value) for key, value in settings.items()}
        for tracker in self._open:
            tracker.store_init_configuration(flat)

    def log(self, figures: dict[str, float], step: int) -> None:
        """Sends the figures of `step` to every tracker. One that fails is let go: a server that is away must not end a
        run, and metrics.jsonl has every figure."""
        for tracker in list(self._open):
            try:
                tracker.log(figures, step=step)
            except Exception as error:  # anything: it is another project's client
                self._open.remove(tracker)
                log.warning("%s failed at step %d and is let go: %s", type(tracker).__name__, step, error)

    def finish(self) -> None:
        """Flushes and closes every tracker."""
        for tracker in self._open:
            try:
                tracker.finish()
            except Exception as error:
                log.warning("%s could not be closed: %s", type(tracker).__name__, error)


def _open(name: str, run_dir: Path) -> GeneralTracker:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS  # costs start-up time, and few runs track anything

    if name not in LOGGER_TYPE_TO_CLASS:
        known = ", ".join(sorted(LOGGER_TYPE_TO_CLASS))
        raise ConfigError(f"train.trackers: {name!r} is not a tracker", hint=f"known are {known}")
    folder = run_dir / "trackers"
    folder.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {}
    if name == "wandb":
        os.environ.setdefault("WANDB_MODE", "offline")
        options["dir"] = str(folder)
    elif name == "mlflow":
        os.environ.setdefault("MLFLOW_TRACKING_URI", (folder / "mlruns").resolve().as_uri())
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    elif LOGGER_TYPE_TO_CLASS[name].requires_logging_directory:
        options["logging_dir"] = str(folder)
    try:
        tracker = LOGGER_TYPE_TO_CLASS[name](run_dir.name, **options)
        tracker.start()
    except ImportError as error:
        raise ConfigError(f"train.trackers: {name} is not installed ({error})", hint=f"pip install {name}") from None
    return tracker
