"""What an adapter section cannot mean together with the other sections; each problem with the nearest config that can.

Pure, without the base: what depends on its layers (targets, ranks above a width) is config/adapter_targets.py's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from luthier.config.adapter import AdapterSpec
from luthier.config.adapter_methods import WHOLE

if TYPE_CHECKING:
    from luthier.config.project import ProjectSpec

Problem = tuple[str, str, str]


def adapter_problems(spec: ProjectSpec) -> list[Problem]:
    """(key, what is wrong, next move) of everything that cannot be."""
    adapter = spec.adapter
    return [*_base_type(spec), *_parts(adapter), *_adalora(adapter), *_longlora(spec)]


def _longlora(spec: ProjectSpec) -> list[Problem]:
    group, longest = spec.adapter.longlora_group, spec.train.sequence_len
    if spec.adapter.method != "longlora" or group < longest:
        return []
    wrong = f"{group} is not below train.sequence_len {longest}, so every row is one group: attention as ever"
    return [("adapter.longlora_group", wrong, f"longlora_group: {max(2, longest // 4)}; or adapter.method: lora")]


def _base_type(spec: ProjectSpec) -> list[Problem]:
    method, facts, dtype = spec.adapter.method, spec.adapter.facts, spec.model.dtype
    if dtype not in facts.dtypes:
        if facts.dtypes == ("nf4",):
            wrong = f"{method} trains on a base in 4 bits, and model.dtype is {dtype}"
            return [("adapter.method", wrong, "model.dtype: nf4; or, on this base, adapter.method: lora")]
        wrong = f"{method} trains weights of the base itself, which {dtype} cannot hold exactly"
        return [("model.dtype", wrong, f"model.dtype: {' or '.join(facts.dtypes)}; or adapter.method: lora")]
    if spec.adapter.saved_parts and dtype not in ("float32", "int8", "nf4"):
        wrong = f"the parts that are trained in full would be {dtype}, where small updates are rounded away"
        return [("adapter.modules_to_save", wrong, "model.dtype: float32, or leave modules_to_save out")]
    return []


def _parts(adapter: AdapterSpec) -> list[Problem]:
    method, problems = adapter.method, []
    if method == "layers" and adapter.top_layers is None:
        problems.append(
            ("adapter.method", "layers trains the last k layers, and no k is given", "adapter.top_layers: 4")
        )
    if adapter.prompt_init_text and method not in ("prompt_tuning", "prefix_tuning"):
        wrong = f"{method} does not start as a text"
        problems.append(("adapter.prompt_init_text", wrong, "leave it out, or adapter.method: prompt_tuning"))
    if adapter.facts.kind in ("prompt", "bottleneck") and not isinstance(adapter.lora_target_modules, str):
        wrong = f"{method} has places of its own in the model"
        problems.append(("adapter.lora_target_modules", wrong, "leave it out, or adapter.method: lora"))
    if (method in (*WHOLE, "head") or adapter.facts.kind == "prompt") and adapter.top_layers is not None:
        hint = "adapter.method: layers" if method in WHOLE else "leave top_layers out"
        problems.append(("adapter.top_layers", f"{method} has no layers to choose", hint))
    patterns = [key for key in ("rank_pattern", "alpha_pattern") if getattr(adapter, key)]
    if patterns and (adapter.facts.kind != "low-rank" or method in ("vera", "adalora")):
        wrong = f"{method} has no rank of its own for each layer"
        problems.append((f"adapter.{patterns[0]}", wrong, f"leave {patterns[0]} out, or adapter.method: lora"))
    if adapter.lora_dropout and adapter.facts.kind != "low-rank":
        problems.append(("adapter.lora_dropout", f"{method} drops nothing", "leave it out, or adapter.method: lora"))
    if adapter.modules_to_save and adapter.facts.kind != "low-rank":
        wrong = f"{method} has no parts beside what it trains"
        problems.append(("adapter.modules_to_save", wrong, "leave it out, or adapter.method: lora"))
    return problems


def _adalora(adapter: AdapterSpec) -> list[Problem]:
    if adapter.method != "adalora":
        return []
    if adapter.adalora_start >= adapter.adalora_end:
        wrong = f"{adapter.adalora_end} is not above adalora_start {adapter.adalora_start}: ranks fall between the two"
        return [("adapter.adalora_end", wrong, f"adalora_end: {min(1.0, adapter.adalora_start + 0.5):g}")]
    if adapter.adalora_init_r is not None and adapter.adalora_init_r < adapter.lora_r:
        wrong = f"{adapter.adalora_init_r} is below lora_r {adapter.lora_r}, the mean rank at the end"
        return [("adapter.adalora_init_r", wrong, f"adalora_init_r: {-(-3 * adapter.lora_r // 2)}, or leave it out")]
    return []
