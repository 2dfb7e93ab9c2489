"""The model card (README.md of a published folder): what this is, where it comes from, what was measured, its limits.

The figures are handed in as read from manifests and verdict.json, so the card can be written again from the same
files. Front matter keys follow the Hugging Face hub's model card specification.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier import __version__
from luthier.ship.artefact import Artefact
from luthier.ship.parity import TIE_NATS


@dataclass(frozen=True)
class CardFacts:
    """What the card tells besides the artefacts. Digests are sha256 hex; mappings are printed row by row, in order.

    base_config: keys of config.json that were changed before training. goal: section `goal` of the project file.
    verdict: verdict.json, or None when nothing was judged yet. system: the system message that every training row had.
    """

    name: str
    base_name: str
    base_digest: str
    base_licence: str
    data_digest: str
    config_digest: str
    base_config: Mapping[str, Any] = field(default_factory=dict)
    goal: Mapping[str, Any] = field(default_factory=dict)
    adapter: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    verdict: Mapping[str, Any] | None = None
    limits: Sequence[str] = ()
    system: str = ""


def model_card(facts: CardFacts, artefacts: Sequence[Artefact]) -> str:
    """The card's Markdown, front matter included."""
    parts = [
        _front_matter(facts),
        f"# {_plain(facts.name)}",
        f"A fine-tune made, judged and exported by luthier {__version__} from `{_plain(facts.base_name)}`.",
        "## Intended use",
        _bullets(_goal_lines(facts.goal)) or "The project file states no goal.",
        *_system(facts.system),
        "## Verdict",
        _verdict(facts.verdict),
        "## Files",
        _table(("file", "status", "size"), [_file_row(artefact) for artefact in artefacts]),
        "## Parity with what was trained",
        "Reference: the adapter, unmerged, on its base. Teacher-forced on held-out answers; KL in nats; greedy "
        "agreement is reported, not judged. A KL read through llama.cpp is over its likeliest tokens and the rest as "
        f"one: a lower bound. Top-1 tokens count as the same when the reference holds them within {TIE_NATS:g} nats.",
        _parity(artefacts),
        "## Lineage",
        _table(("what", "value"), _lineage(facts)),
        *_changed_base(facts),
        "## Training",
        _table(("what", "value"), [*facts.adapter.items(), *facts.training.items()]),
        "## Limits",
        _bullets([*facts.limits, *_notes(artefacts)]) or "None beyond those of the base model.",
        "## Licence",
        f"The weights derive from `{_plain(facts.base_name)}` ({_plain(facts.base_licence) or 'licence not stated'}); "
        "its terms apply to them, and the terms of the training data to what was learned from it.",
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(facts: CardFacts) -> str:
    entries = {
        "base_model": facts.base_name,
        "license": facts.base_licence.lower() or "other",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
    }
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in entries.items()]
    return "\n".join(["---", *lines, "tags:", "- luthier", f"- {facts.adapter.get('method', 'lora')}", "---"])


def _system(text: str) -> list[str]:
    if not text:
        return []
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    words = "It was trained and judged under this system message. Send it with every request (the Modelfile holds it):"
    return ["## How to ask", words, f"{fence}text\n{text}\n{fence}"]


def _changed_base(facts: CardFacts) -> list[str]:
    """How to load an adapter of a base that was changed before training; the merged model and the GGUF files need
    nothing of it."""
    if not facts.base_config:
        return []
    arguments = ", ".join(f"{key}={value!r}" for key, value in facts.base_config.items())
    call = f"AutoModelForCausalLM.from_pretrained({facts.base_name!r}, {arguments})"
    words = "The base was given a longer context before training. The adapter alone belongs on it as loaded by:"
    return [words, f"```python\n{call}\n```"]


def _goal_lines(goal: Mapping[str, Any]) -> list[str]:
    lines = []
    for key, value in goal.items():
        if value:
            text = "; ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            lines.append(f"{key.replace('_', ' ')}: {text}")
    return lines


def _verdict(verdict: Mapping[str, Any] | None) -> str:
    if verdict is None:
        return "Not judged: no evaluation ran on these files. Do not ship them on the strength of this card."
    rows = [(key, value) for key, value in verdict.items() if isinstance(value, str | int | float | bool)]
    return _table(("what", "value"), rows)


def _file_row(artefact: Artefact) -> tuple[Any, ...]:
    status = "published" if artefact.passed else f"withheld: {'; '.join(artefact.reasons)}"
    return artefact.file_name, status, f"{artefact.size_bytes / 1e6:.1f} MB"


def _parity(artefacts: Sequence[Artefact]) -> str:
    rows = []
    for record in (record for artefact in artefacts for record in artefact.records):
        m, limit = record.metrics, record.threshold
        rows.append(
            (
                record.artefact,
                record.reader,
                f"{m.kl_mean:.2e} (limit {limit['kl']:.0e})",
                f"{m.kl_p99:.2e}",
                f"{m.kl_max:.2e}",
                f"{m.top1:.2%} (limit {limit['top1']:.0%})",
                "-" if m.greedy_match is None else f"{m.greedy_match:.0%}",
                "-" if m.prompts_equal is None else f"{m.prompts_equal:.0%}",
                "passed" if record.passed else "FAILED",
            )
        )
    head = ("artefact", "read by", "mean KL", "p99 KL", "max KL", "same top-1", "greedy", "same prompt ids", "result")
    return _table(head, rows)


def _lineage(facts: CardFacts) -> list[tuple[str, Any]]:
    return [
        ("base model", facts.base_name),
        ("base digest", facts.base_digest),
        ("data digest", facts.data_digest),
        ("config digest", facts.config_digest),
        *((f"data: {key}", value) for key, value in facts.data.items()),
    ]


def _notes(artefacts: Sequence[Artefact]) -> list[str]:
    return list(dict.fromkeys(note for artefact in artefacts for note in artefact.notes))


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_plain(cell) for cell in line) + " |" for line in lines)


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {_plain(line)}" for line in lines)


def _plain(value: Any) -> str:
    """One line that cannot break out of a table cell or open HTML."""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("`", "'")
