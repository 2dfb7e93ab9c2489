"""How well a tune ranks held-out pairs, beside the base and the rule "the longer answer wins", and how far it has gone
from the base. Measured on the dev split with the weights that are kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from luthier.adapters.handle import AdaptedModel
from luthier.data.pack import LayOut, epoch_batches
from luthier.engine.evaluation import dev_figures
from luthier.engine.inputs import batches_of
from luthier.engine.memory import OutOfMemory
from luthier.jobs import console
from luthier.jobs.objective import AdaptersOff, Examples, OpenObjective
from luthier.jobs.session import Session
from luthier.losses.sequences import PairRecord, PreferenceLoss
from luthier.losses.tokens import SecondModel, TokenLoss
from luthier.stats.intervals import mean_interval
from luthier.store.publish import write_atomic
from luthier.types import RowSet


def ranking_facts(
    model: Any, base: Any, loss: PreferenceLoss, rows: RowSet, lay_out: LayOut, micro_batch_tokens: int
) -> dict[str, Any]:
    """Shares of pairs ranked right (a tie counts half) and their 95% intervals.

    tuned: by the objective's reward. base: by its log-probability, of the answer or of a token of it, whichever ranks
    better here. longer: by the number of tokens. over_*: tuned less the other, paired. kl_per_token: KL(tune || base)
    in nats, over the vocabulary, at the tokens of both sides.
    """
    packs = epoch_batches(rows, micro_batch_tokens, 0, 0)
    device = next(model.parameters()).device
    bare, found = replace(loss, has_reference=False), []
    with torch.no_grad():
        for batch in batches_of(rows, packs, lay_out, device):
            found.append(_ranked(loss, loss.record(model, batch), bare.record(base, batch)))
    ranked = {name: torch.cat([part[name] for part in found]).double() for name in found[0]}
    total, token = ranked.pop("base_total"), ranked.pop("base_token")
    ranked["base"] = total if total.mean() >= token.mean() else token
    facts: dict[str, Any] = {"pairs": len(ranked["tuned"])}
    for name, values in ranked.items():
        facts[name] = _share(values)
    for other in ("base", "longer"):
        facts[f"over_{other}"] = _share(ranked["tuned"] - ranked[other])
    facts["kl_per_token"] = _kl(model, base, rows, packs, lay_out, device)
    return facts


def _tell_ranking(facts: Mapping[str, Any]) -> None:
    """One line of the figures."""
    shares = ", ".join(f"{name} {100 * facts[name]['mean']:.1f}%" for name in ("tuned", "base", "longer"))
    gains = "; ".join(
        "tuned over {} {:+.1f} points (95% {:+.1f} to {:+.1f})".format(
            name, *(100 * facts[f"over_{name}"][part] for part in ("mean", "low", "high"))
        )
        for name in ("base", "longer")
    )
    console.line(
        f"{facts['pairs']} held-out pairs ranked right: {shares}; {gains}; "
        f"KL from the base {facts['kl_per_token']:.4f} nats a token"
    )


def _ranked(loss: PreferenceLoss, tuned: PairRecord, base: PairRecord) -> dict[str, Tensor]:
    return {
        "tuned": _right(*loss.reward(tuned)),
        "base_total": _right(base.chosen, base.rejected),
        "base_token": _right(base.chosen / base.num_chosen, base.rejected / base.num_rejected),
        "longer": _right(base.num_chosen, base.num_rejected),
    }


def _right(chosen: Tensor, rejected: Tensor) -> Tensor:
    return ((chosen > rejected).float() + (chosen >= rejected).float()) / 2


def _share(values: Tensor) -> dict[str, float]:
    low, high = mean_interval(values.cpu().numpy())
    return {"mean": values.mean().item(), "low": low, "high": high}


def _kl(
    model: Any, base: SecondModel, rows: RowSet, packs: list[list[int]], lay_out: LayOut, device: torch.device
) -> float:
    apart = TokenLoss(nll=0.0, pull=1.0, divergence="reverse_kl", second=base)
    figures = dev_figures(model, apart, rows, packs, lay_out, device, lambda: False)
    return 0.0 if figures is None else figures["loss"]


def held_out_before(
    session: Session, model: nn.Module, objective: OpenObjective, examples: Examples
) -> dict[str, float]:
    """The dev figures before the first step; kept beside the run, because a resumed one starts later. Empty without a
    dev split, where a batch does not fit in memory, and for sft: it is measured against the base by `luthier evaluate`.
    """
    if session.project.spec.loss.kind == "sft":
        return {}
    path, spec = session.work / "before.json", session.project.spec.train
    if not path.exists():
        packs = epoch_batches(examples.dev, spec.micro_batch_tokens, 0, 0) if len(examples.dev) else []
        device = next(iter(model.named_parameters()))[1].device
        never = lambda: False  # noqa: E731
        handed = (model, objective.loss, examples.dev, packs, objective.lay_out, device, never)
        try:
            figures = dev_figures(*handed) if packs else None
        except OutOfMemory:  # the run itself will halve its batches; this figure is not worth a search
            figures = None
        write_atomic(path, json.dumps(figures or {}))
    return json.loads(path.read_text(encoding="utf-8"))


def ranking(
    session: Session, adapted: AdaptedModel, objective: OpenObjective, examples: Examples
) -> dict[str, Any] | None:
    """Of an objective on pairs that ranks by words: how it ranks the dev pairs."""
    if not isinstance(objective.loss, PreferenceLoss) or not len(examples.dev) or not adapted.keeps_base:
        return None
    budget = session.project.spec.train.micro_batch_tokens
    handed = (adapted.model, AdaptersOff(adapted), objective.loss, examples.dev, objective.lay_out, budget)
    facts = ranking_facts(*handed)
    _tell_ranking(facts)
    return facts
