"""The trained reward model that an online run asks (rollouts.reward_model): does it fit the base, and opening it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from luthier.adapters.peft_files import CONFIG_FILE, WEIGHTS_FILE, read_json
from luthier.adapters.score_head import load_score_head, score_shape
from luthier.bases.shapes import read_shapes
from luthier.config.load import Project
from luthier.data.pack import at_last_token
from luthier.errors import ConfigError
from luthier.jobs import console
from luthier.jobs.opened import OpenBase
from luthier.models.load import load_model
from luthier.rollouts.reward_model import RewardModel
from luthier.store.provenance import read_provenance
from luthier.store.publish import MANIFEST, digest_file, digest_json, read_manifest
from luthier.types import Batch, EncodedRow, Message

_KEY = "rollouts.reward_model"
_HINT = "train one on this base with loss.kind: reward, and give the adapter folder of its train stage"


def check_reward_model(project: Project, opened: OpenBase) -> None:
    """Raises ConfigError, before any weight of the base is read, for a folder that is no reward model of this base."""
    if project.spec.rollouts.reward_model is None:
        return
    folder = _folder(project)
    if not (folder / CONFIG_FILE).is_file() or not (folder / WEIGHTS_FILE).is_file():
        raise ConfigError(f"{_KEY}: {folder} is no adapter folder (no {CONFIG_FILE} with {WEIGHTS_FILE})", hint=_HINT)
    shape = score_shape(folder)
    if shape is None or shape[0] != 1:
        found = "no score head" if shape is None else f"{shape[0]} scores, those of a classifier"
        raise ConfigError(f"{_KEY}: {folder} has {found}, and a reward is one score", hint=_HINT)
    if problem := _other_base(folder, shape[1], opened):
        raise ConfigError(f"{_KEY}: {folder} {problem}", hint=_HINT)


def _other_base(folder: Path, width: int, opened: OpenBase) -> str:
    """Why the scores of `folder` mean nothing on this base, or ''. The manifest of its train stage knows for sure; a
    folder that was copied out of it tells its base by name and size alone.
    """
    base = opened.base
    if (folder.parent / MANIFEST).is_file():
        manifest = read_manifest(folder.parent)
        made = read_provenance(manifest)
        if (kind := manifest["facts"].get("loss")) != "reward":
            return f"was trained with loss.kind {kind}, not reward"
        if made.tokenizer.digest != opened.tokenizer.digest:
            return "was trained with another tokenizer"
        same = made.base is not None and made.base.digest == base.digest
        return "" if same else "was trained on another base"
    name = read_json(folder / CONFIG_FILE).get("base_model_name_or_path")
    if Path(str(name)).name != Path(base.name).name:  # a folder may lie elsewhere than when it was trained on
        return f"was trained on another base: {name}, and this one is {base.name}"
    size = read_shapes(base.folder).hidden_size
    return "" if width == size else f"has a score head of {width} inputs, and the base is {size} wide"


def reward_model_digest(project: Project) -> str | None:
    """What the scores depend on beside the base."""
    if project.spec.rollouts.reward_model is None:
        return None
    return digest_json({name: digest_file(_folder(project) / name) for name in (CONFIG_FILE, WEIGHTS_FILE)})


def open_reward_model(
    project: Project,
    opened: OpenBase,
    lay_out: Callable[[Sequence[EncodedRow]], Batch],
    place: Callable[[Batch], Batch],
) -> RewardModel | None:
    """The reward model on its own copy of the base, in float32; None where the run has none."""
    if project.spec.rollouts.reward_model is None:
        return None
    model = load_model(opened.base.folder)
    load_score_head(model, _folder(project))
    console.line(f"reward model: {_folder(project)}")
    made = lambda rows: place(at_last_token(lay_out(rows)))  # noqa: E731
    asked, told = Message(role="user", content="?"), "!"
    end_id = opened.codec.encode_answer([asked], told)[0][-1]
    return RewardModel(model.eval(), made, end_id, project.spec.train.micro_batch_tokens)


def _folder(project: Project) -> Path:
    return project.folder / str(project.spec.rollouts.reward_model)
