"""Rows against the positions that the base has: a table of positions ends there, rotary ones go on into what was never
learnt, and model.rope_scaling moves the end."""

from __future__ import annotations

import math

from luthier.config.project import ProjectSpec
from luthier.errors import ConfigError
from luthier.plan.linears import OWN_MODELS


def check_context(spec: ProjectSpec, model_type: str, context: int) -> str:
    """What to know of these rows on a base of `context` positions (model.rope_scaling in it; 0: unknown), or "".
    Raises ConfigError where they cannot be, with the nearest setting that can."""
    scaling, longest = spec.model.rope_scaling, spec.train.sequence_len
    if not context or (spec.adapter.method == "longlora" and scaling is None):
        return ""
    if longest <= context:
        return "" if scaling is None else _unused(math.ceil(context / scaling.factor), longest)
    found = f"train.sequence_len {longest} is above the {context} positions that this base was made for"
    if scaling is not None:
        own = math.ceil(context / scaling.factor)
        raise ConfigError(
            f"train.sequence_len {longest} is above {context}: model.rope_scaling.factor {scaling.factor:g} times the "
            f"base's {own} positions",
            hint=f"model.rope_scaling.factor: {math.ceil(longest / own)}, or train.sequence_len: {context}",
        )
    if model_type not in OWN_MODELS:
        raise ConfigError(found, hint=f"train.sequence_len: {context}, or a base with a longer context")
    stretch = f"model.rope_scaling: {{rope_type: yarn, factor: {math.ceil(longest / context)}}}"
    return (
        f"{found}: it has never seen what stands behind them; {stretch} stretches them, train.sequence_len: {context} "
        "refuses such rows"
    )


def _unused(own: int, longest: int) -> str:
    if longest > own:
        return ""
    return (
        f"model.rope_scaling stretches the base's {own} positions, and rows have at most {longest} tokens "
        "(train.sequence_len): the longer context is shipped without having been trained"
    )
