"""The objective of an Axolotl file (`rl`, `reward_model`, and the keys of their losses) as our section `loss`.

Source: Axolotl's RLType and the arguments that it hands to TRL's trainers.
"""

from __future__ import annotations

from luthier.config.axolotl_reader import Reader, accepts
from luthier.config.loss import OPTIONS

_ONLINE = ("grpo", "gdpo")
_KEYS = {
    "rl_beta": "beta", "dpo_beta": "beta", "orpo_alpha": "beta", "simpo_gamma": "simpo_gamma",
    "cpo_alpha": "nll_weight", "kto_desirable_weight": "desirable_weight",
    "kto_undesirable_weight": "undesirable_weight", "dpo_label_smoothing": "label_smoothing",
    "center_rewards_coefficient": "center_weight",
}  # fmt: skip
"""Their key -> ours in the section loss, for the objectives that read it."""


def read_objective(r: Reader) -> None:
    """Takes the objective and the keys of its loss."""
    kind = _kind(r)
    for key, ours in _KEYS.items():
        if key not in r.left:
            continue
        if ours in OPTIONS[kind]:
            r.keep_number(key, f"loss.{ours}")
        else:
            r.take(key)
            r.need_not(key, f"the objective {kind} does not read it")


def _kind(r: Reader) -> str:
    given = r.take("rl")
    if given:
        return _preference(r, str(given))
    if given is not None:
        r.need_not("rl", "off")
    if not r.take("reward_model"):
        if "reward_model" in r.lines:
            r.need_not("reward_model", "off")
        return "sft"
    r.keep("reward_model", "loss.kind", "reward")
    if r.number("num_labels", 1) == 1 and "num_labels" in r.lines:
        r.need_not("num_labels", "a reward is one score a row")
    return "reward"


def _preference(r: Reader, name: str) -> str:
    if name == "ipo":
        r.keep("rl", "loss.kind", "dpo")
        r.done.values["loss.variant"] = "ipo"
        return "dpo"
    if name in _ONLINE:
        r.refuse(
            "rl", f"the rewards of {name} are code that the file names; loss.kind: grpo has its own (rollouts.rewards)"
        )
    elif name in OPTIONS and name not in ("sft", "continued", "distill") and accepts("loss.kind", name):
        r.keep("rl", "loss.kind", name)
        return name
    else:
        r.refuse("rl", f"{name} is no objective of this version")
    return "sft"
