"""The project file as one value: every section of `luthier.yaml`, in the order of the life cycle."""

from pathlib import Path

from luthier.config.adapter import AdapterSpec
from luthier.config.base import Spec
from luthier.config.data import DataSpec
from luthier.config.evaluate import EvaluateSpec
from luthier.config.goal import GoalSpec
from luthier.config.loss import LossSpec
from luthier.config.model import ModelSpec
from luthier.config.rollouts import RolloutsSpec
from luthier.config.ship import ShipSpec
from luthier.config.train import TrainSpec


class ProjectSpec(Spec):
    """The resolved project file."""

    goal: GoalSpec = GoalSpec()
    model: ModelSpec = ModelSpec()
    data: DataSpec
    adapter: AdapterSpec = AdapterSpec()
    loss: LossSpec = LossSpec()
    rollouts: RolloutsSpec = RolloutsSpec()
    train: TrainSpec = TrainSpec()
    evaluate: EvaluateSpec = EvaluateSpec()
    ship: ShipSpec = ShipSpec()
    output_dir: Path = Path("runs")
    """Where stages put their folders (relative to the project file)."""

    @property
    def longest_row(self) -> int:
        """Most tokens that a prepared row may have: of an online objective it is a prompt, and an answer must fit."""
        return self.train.sequence_len - (self.rollouts.max_new_tokens if self.loss.is_online else 0)
