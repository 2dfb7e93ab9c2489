"""The project file as one value: every section of `luthier.yaml`, in the order of the life cycle."""

from pathlib import Path

from luthier.config.adapter import AdapterSpec
from luthier.config.base import Spec
from luthier.config.data import DataSpec
from luthier.config.evaluate import EvaluateSpec
from luthier.config.goal import GoalSpec
from luthier.config.loss import LossSpec
from luthier.config.model import ModelSpec
from luthier.config.ship import ShipSpec
from luthier.config.train import TrainSpec


class ProjectSpec(Spec):
    """The resolved project file."""

    goal: GoalSpec = GoalSpec()
    model: ModelSpec = ModelSpec()
    data: DataSpec
    adapter: AdapterSpec = AdapterSpec()
    loss: LossSpec = LossSpec()
    train: TrainSpec = TrainSpec()
    evaluate: EvaluateSpec = EvaluateSpec()
    ship: ShipSpec = ShipSpec()
    output_dir: Path = Path("runs")
    """Where stages put their folders (relative to the project file)."""
