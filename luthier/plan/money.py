"""What a run costs on rented hardware, and when a tuned model of one's own pays against asking an API.

Every price is an argument with a default that is printed where it is used: they are assumptions, yours will differ.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from luthier.errors import ConfigError
from luthier.types import MachineProfile

HOURS_PER_MONTH = 730.0
MAX_SERVERS = 1000


def money(seconds: float, machine: MachineProfile) -> float | None:
    """USD for `seconds` on `machine`; None when the machine has no price (your own)."""
    return None if machine.usd_per_hour is None else seconds / 3600.0 * machine.usd_per_hour


@dataclass(frozen=True)
class ServingAssumptions:
    """Tokens per request and prices in USD; the defaults are stated round figures, not quotes.

    system_tokens: instructions every request carries on an API (a tuned model has learnt them). server_usd_per_hour:
    the rented machine that serves the tuned model around the clock; requests_per_s: what one such machine answers.
    """

    question_tokens: int = 150
    answer_tokens: int = 100
    system_tokens: int = 200
    retrieved_tokens: int = 2500
    shots: int = 8
    tokens_per_shot: int = 250
    input_usd_per_million: float = 2.5
    output_usd_per_million: float = 10.0
    embedding_usd_per_million: float = 0.02
    index_usd_per_month: float = 70.0
    server_usd_per_hour: float = 0.5
    requests_per_s: float = 2.0


def assumptions(assignments: Sequence[str]) -> ServingAssumptions:
    """The defaults with `key=number` assignments applied. Raises ConfigError for an unknown key or no number."""
    kinds = {field.name: type(field.default) for field in fields(ServingAssumptions)}
    values: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if key not in kinds or not equals:
            near = difflib.get_close_matches(key, list(kinds), n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}=...?" if near else f"known are {', '.join(kinds)}"
            raise ConfigError(f"--assume {assignment}: expected a known key=number", hint=hint)
        try:
            values[key] = kinds[key](text)
        except ValueError:
            kind = "whole number" if kinds[key] is int else "number"
            raise ConfigError(f"--assume {key}: {text!r} is no {kind}", hint=f"for example {key}=2") from None
        if not 0 <= values[key] < float("inf"):
            raise ConfigError(f"--assume {key}: {text!r} is not a price or a size", hint=f"for example {key}=2")
    if values.get("requests_per_s", 1) == 0:
        raise ConfigError("--assume requests_per_s: a server that answers nothing", hint="for example requests_per_s=2")
    return ServingAssumptions(**values)


@dataclass(frozen=True)
class MonthlyCost:
    """USD a month of one way to answer. fixed: paid at any volume; per_request: on top, each."""

    way: str
    fixed: float
    per_request: float
    total: float
    formula: str


def monthly_costs(
    num_requests: int, training_usd: float, assume: ServingAssumptions = ServingAssumptions()
) -> list[MonthlyCost]:
    """Tuned-local, RAG by API and few-shot by API at `num_requests` a month. training_usd: one tune a month."""
    a = assume
    answer = a.answer_tokens * a.output_usd_per_million / 1e6
    asked = a.question_tokens + a.system_tokens
    rag = (asked + a.retrieved_tokens) * a.input_usd_per_million / 1e6 + answer
    rag += a.question_tokens * a.embedding_usd_per_million / 1e6
    few = (asked + a.shots * a.tokens_per_shot) * a.input_usd_per_million / 1e6 + answer
    servers = max(1, math.ceil(num_requests / (a.requests_per_s * 3600 * HOURS_PER_MONTH)))
    tuned = servers * a.server_usd_per_hour * HOURS_PER_MONTH + training_usd
    return [
        MonthlyCost(
            "tuned, served by you", tuned, 0.0, tuned,
            f"{servers} server x {HOURS_PER_MONTH:.0f} h x {a.server_usd_per_hour:g} USD + one training run",
        ),
        MonthlyCost(
            "retrieval (RAG) by API", a.index_usd_per_month, rag, a.index_usd_per_month + rag * num_requests,
            f"({asked} + {a.retrieved_tokens} retrieved) tokens in, {a.answer_tokens} out, an index",
        ),
        MonthlyCost(
            "few-shot by API", 0.0, few, few * num_requests,
            f"({asked} + {a.shots} x {a.tokens_per_shot} shown) tokens in, {a.answer_tokens} out",
        ),
    ]  # fmt: skip


def break_even_requests(training_usd: float, assume: ServingAssumptions = ServingAssumptions()) -> dict[str, float]:
    """Requests a month from which tuned-local is cheaper than each way by API, by name; inf: never.

    Above one server's capacity the cost of further servers is counted in.
    """
    capacity = assume.requests_per_s * 3600 * HOURS_PER_MONTH
    server_usd = assume.server_usd_per_hour * HOURS_PER_MONTH
    result = {}
    for other in monthly_costs(1, training_usd, assume)[1:]:
        needed = [
            max(0.0, (servers * server_usd + training_usd - other.fixed) / max(1e-12, other.per_request))
            for servers in range(1, MAX_SERVERS + 1)
        ]
        fitting = [need for servers, need in enumerate(needed, start=1) if need <= servers * capacity]
        result[other.way] = min(fitting, default=float("inf"))
    return result
