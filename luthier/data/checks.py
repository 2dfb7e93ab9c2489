"""The checks on single rows: personal data, secrets, language, quality, words and wordings that must not be there.

What: every row is searched; what is found is counted and goes to findings.jsonl by place (file, line, path of the text,
span), never by value. The policy of its kind decides: report, redact (the value becomes [EMAIL_1], the same value the
same name within a row, in other columns too), or drop (set aside by name). Why before duplicates and splits: a redacted
row is another row, and all that follows must see the row that is trained on.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from luthier.config.data_checks import ChecksSpec
from luthier.data.items import Item, prompt_text
from luthier.data.quarantine import Quarantine
from luthier.data.row_texts import column_texts, joined_pieces, map_texts, texts_of
from luthier.errors import ConfigError
from luthier.text import clinical, pii, secrets
from luthier.text.clinical import find_clinical, name_words
from luthier.text.findings import Finding, keep_apart, redact
from luthier.text.language import UNKNOWN, identify, languages
from luthier.text.pii import find_pii, known_region
from luthier.text.quality import answer_flags, document_flags
from luthier.text.secrets import find_secrets
from luthier.text.terms import read_terms, term_pattern
from luthier.types import Row


@dataclass(frozen=True)
class Hit:
    """One line of findings.jsonl: what stands where, in the text as it was before redaction, and what was done."""

    file: str
    line: int
    check: str
    kind: str
    path: str
    start: int
    end: int
    action: str


class Checker:
    """Runs the checks of a spec over rows. What was found is kept until `taken_lines` hands it on, and counted;
    languages: of prompts."""

    def __init__(self, spec: ChecksSpec, base_dir: Path, quarantine: Quarantine) -> None:
        self._spec, self._quarantine = spec, quarantine
        self._policies = spec.policies | dict.fromkeys(clinical.KINDS, spec.deidentify)
        on = {kind for kind, policy in self._policies.items() if policy != "off"}
        self._pii = tuple(kind for kind in pii.KINDS if kind in on)
        self._clinical = tuple(kind for kind in clinical.KINDS if kind in on)
        self._secrets = frozenset(on & set(secrets.KINDS))
        self._redacted = {kind for kind, policy in self._policies.items() if policy == "redact"}
        self._words = {
            name: term_pattern(read_terms(base_dir / path)) for name, path in sorted(spec.word_lists.items())
        }
        self._wordings = {name: re.compile(form, re.IGNORECASE) for name, form in sorted(spec.patterns.items())}
        self.languages: Counter[str] = Counter()
        self._hits: list[Hit] = []
        self._findings: Counter[tuple[str, str, str]] = Counter()
        self._rows: Counter[tuple[str, str, str]] = Counter()
        _check_codes(spec)

    def run(self, items: Sequence[Item]) -> list[Item]:
        """The items that stay, redacted where the policy says so; the others go to the quarantine by name."""
        spoken = self._spoken(items) if self._spec.language != "off" else [(UNKNOWN, UNKNOWN)] * len(items)
        both = zip(items, spoken, strict=True)
        return [checked for item, two in both if (checked := self._one(item, *two)) is not None]

    def _one(self, item: Item, asked: str, answered: str) -> Item | None:
        known = self._known_names(item.row)
        found = {path: self._find(text, known) for path, text in texts_of(item.row)}
        if self._redacted:
            found |= self._in_columns_alone(item.row, found, known)
        hits = [hit for path, some in found.items() for hit in self._private_hits(item.row, path, some)]
        hits += self._flags(item.row, asked, answered)
        dropped = next((hit for hit in hits if hit.action == "drop"), None)
        self._hits += hits
        kinds = [(hit.check, hit.kind, hit.action) for hit in hits]
        self._findings.update(kinds)
        self._rows.update(set(kinds))
        if dropped:
            detail = f"{dropped.check}: {dropped.kind}"
            self._quarantine.add(item.record, detail, reason=detail, is_fault=False)
            return None
        if self._redacted and any(hit.action == "redact" for hit in hits):
            return self._redacted_item(item, known)
        return item

    def _spoken(self, items: Sequence[Item]) -> list[tuple[str, str]]:
        """The languages of every prompt and answer; of an answer only where it is held against the prompt's."""
        asked = identify([prompt_text(item.row) for item in items])
        answers = (item.row.answer.lstrip() for item in items)
        answered = identify(
            [
                "" if language == UNKNOWN or answer.startswith(("{", "[", "```", "<")) else answer
                for language, answer in zip(asked, answers, strict=True)
            ]
        )
        return list(zip(asked, answered, strict=True))

    def _known_names(self, row: Row) -> frozenset[str]:
        """The words of the names in any text of the row: alone in another text they are names too."""
        if not self._clinical:
            return frozenset()
        return name_words([text for _, text in (*texts_of(row), *column_texts(row))])

    def _in_columns_alone(
        self, row: Row, found: dict[str, list[Finding]], known: frozenset[str]
    ) -> dict[str, list[Finding]]:
        """What only the other columns hold: a value that a turn shows too (a prompt is made from columns) is redacted
        in both and counted once."""
        texts = dict(texts_of(row))
        shown = {(one.kind, texts[path][one.start : one.end]) for path, some in found.items() for one in some}
        return {
            path: [
                one
                for one in self._find(text, known)
                if one.kind in self._redacted and (one.kind, text[one.start : one.end]) not in shown
            ]
            for path, text in column_texts(row)
        }

    def _redacted_item(self, item: Item, known: frozenset[str]) -> Item | None:
        row = self._redact(item.row, known)
        found = (one for text in joined_pieces(row) for one in self._find(text, known))
        left = next((one for one in found if one.kind in self._redacted), None)
        if left:
            detail = f"{left.kind} stands across two pieces of a row and cannot be redacted"
            self._quarantine.add(item.record, detail, is_fault=False)
            return None
        return replace(item, row=row)

    def _find(self, text: str, known: frozenset[str]) -> list[Finding]:
        found = find_pii(text, self._pii, self._spec.pii.regions) if self._pii else []
        if self._clinical:
            found = keep_apart([*found, *find_clinical(text, self._clinical, known)])
        return found + [one for one in find_secrets(text) if one.kind in self._secrets] if self._secrets else found

    def _private_hits(self, row: Row, path: str, found: list[Finding]) -> Iterator[Hit]:
        for one in found:
            check = "secret" if one.kind in secrets.KINDS else "personal data"
            yield Hit(row.source, row.line, check, one.kind, path, one.start, one.end, self._policies[one.kind])

    def _redact(self, row: Row, known: frozenset[str]) -> Row:
        names: dict[tuple[str, str], str] = {}

        def change(text: str) -> str:
            found = [one for one in self._find(text, known) if one.kind in self._redacted]
            kept: list[Finding] = []
            for one in sorted(found, key=lambda f: f.start):
                if not kept or one.start >= kept[-1].end:
                    kept.append(one)
            return redact(text, kept, names) if kept else text

        return map_texts(row, change)

    def _flags(self, row: Row, asked: str, answered: str) -> Iterator[Hit]:
        """Everything that is not a matter of privacy. asked, answered: the languages of prompt and answer."""
        spec = self._spec

        def flag(check: str, kind: str, action: str, path: str = "", span: tuple[int, int] = (0, 0)) -> Hit:
            return Hit(row.source, row.line, check, kind, path, *span, action)

        if spec.language != "off":
            yield from (flag("language", kind, spec.language) for kind in self._language(asked, answered))
        if spec.quality != "off" and row.answer:
            yield from (flag("quality", kind, spec.quality) for kind in answer_flags(row.answer))
        if spec.documents != "off" and row.text:
            yield from (flag("document", kind, spec.documents) for kind in document_flags(row.text))
        for check, patterns in (("word list", self._words), ("wording", self._wordings)):
            for name, pattern in patterns.items():
                for path, text in texts_of(row):
                    yield from (flag(check, name, spec.flagged, path, m.span()) for m in pattern.finditer(text))

    def _language(self, asked: str, answered: str) -> Iterator[str]:
        self.languages[asked] += 1
        if self._spec.languages and asked != UNKNOWN and asked not in self._spec.languages:
            yield f"{asked} is not wanted"
        if UNKNOWN not in (asked, answered) and answered != asked:
            yield f"prompt {asked}, answer {answered}"

    def taken_lines(self) -> str:
        """The lines of findings.jsonl since they were last taken."""
        hits, self._hits = self._hits, []
        return "".join(json.dumps(asdict(hit), ensure_ascii=False) + "\n" for hit in hits)

    def counts(self) -> list[dict[str, Any]]:
        """One record for each (check, kind, action): findings and rows, in the order of their numbers."""
        ranked = sorted(self._findings.items(), key=lambda pair: (pair[0][0], -pair[1], pair[0]))
        return [
            {"check": key[0], "kind": key[1], "action": key[2], "findings": num, "rows": self._rows[key]}
            for key, num in ranked
        ]


def sentences(counts: Sequence[dict]) -> list[str]:
    """What was found, one line a check, for the console: "personal data: email 12, phone 3 (reported)"."""
    by_check: dict[str, list[str]] = defaultdict(list)
    done = {"report": "", "redact": " redacted", "drop": " dropped"}
    for one in counts:
        by_check[one["check"]].append(f"{one['kind']} {one['findings']:,}{done[one['action']]}")
    return [
        f"{check}: {', '.join(kinds[:4])}{f', {len(kinds) - 4} more kinds' if len(kinds) > 4 else ''}"
        for check, kinds in by_check.items()
    ]


def _check_codes(spec: ChecksSpec) -> None:
    for region in spec.pii.regions:
        if not known_region(region):
            raise ConfigError(
                f"data.checks.pii.regions: {region!r} is no country", hint="ISO codes, such as US, GB, DE"
            )
    unknown = set(spec.languages) - languages() if spec.languages else set()
    if unknown:
        raise ConfigError(
            f"data.checks.languages: {', '.join(sorted(unknown))} cannot be told apart",
            hint="ISO 639-1 codes, such as en, de, fr",
        )
