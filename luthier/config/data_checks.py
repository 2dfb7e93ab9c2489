"""Section `data.checks`: what is looked for in every row before anything is split, and what is done about it."""

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from luthier.config.base import Spec

Policy = Literal["off", "report", "redact", "drop"]
Flag = Literal["off", "report", "drop"]


class PiiSpec(Spec):
    """Personal data, one policy a kind: report counts and places, redact puts [EMAIL_1] in its place, drop sets the row
    aside. Names and street addresses are found by data.checks.deidentify alone."""

    email: Policy = "report"
    """E-mail addresses."""
    phone: Policy = "report"
    """Phone numbers, checked against the numbering plans."""
    card: Policy = "report"
    """Payment cards: issuer, length and check digit."""
    iban: Policy = "report"
    """Bank accounts: length and check digits."""
    national_id: Policy = "report"
    """Identity numbers of sixteen countries, by check digit where there is one."""
    date_of_birth: Policy = "report"
    """Dates that are said to be somebody's birth."""
    ip: Policy = "report"
    """Public IPv4 and IPv6 addresses."""
    url_credentials: Policy = "report"
    """user:password in a URL."""
    regions: tuple[str, ...] = ("US", "GB")
    """Countries (ISO codes) whose phone numbers may stand without a country code."""


class SecretsSpec(Spec):
    """Secrets, one policy a kind, as for personal data."""

    private_key: Policy = "report"
    """PEM and PGP private keys."""
    token: Policy = "report"
    """Keys and tokens in the documented form of a known service."""
    password: Policy = "report"
    """What is assigned to a password, secret or API key in so many words."""
    high_entropy: Policy = "report"
    """Long strings too random to be words."""


class ChecksSpec(Spec):
    """What is looked for in the rows. Everything found goes to findings.jsonl by place, never by value."""

    encoding: Literal["off", "report", "repair"] = "repair"
    """Text that was decoded with the wrong table ("cafÃ©"): repair puts it right and counts it."""
    pii: PiiSpec = PiiSpec()
    deidentify: Policy = "off"
    """What is done about all that HIPAA's Safe Harbor names, in English clinical text: names, dates, ages over 89,
    addresses, towns, hospitals, record numbers, web addresses, and every kind of `pii` whose own policy is weaker."""
    secrets: SecretsSpec = SecretsSpec()
    language: Flag = "report"
    """Rows in a language that is not listed, and answers in another language than their prompt."""
    languages: tuple[str, ...] = ()
    """Languages that are wanted (ISO 639-1 codes); empty = any."""
    quality: Flag = "report"
    """Answers that loop, refuse, end in the middle, or hold code that does not parse."""
    documents: Flag = "off"
    """Plain English documents against the rules of Gopher, C4 and FineWeb."""
    word_lists: dict[str, str] = Field(default={})
    """Name -> path of a list of words (one a line) that must not stand in a row, e.g. toxicity. No list is shipped."""
    patterns: dict[str, str] = Field(default={})
    """Name -> regular expression of wordings that are too vague, e.g. vague_dose: "consider increasing"."""
    flagged: Literal["report", "drop"] = "report"
    """What happens to rows that a word list or a pattern finds."""
    group_terms: dict[str, tuple[str, ...]] = Field(default={})
    """Group -> words that name it, e.g. {a: [Emily, Greg], b: [Lakisha, Jamal]}. Rows that are equal but for such a
    word and have different answers are counted, and so is how much the rate of each answer differs between groups."""
    group_column: str | None = None
    """Column that names a row's group, instead of words."""
    counterfactual: Literal["report", "drop", "error"] = "report"
    """What happens to rows that are equal but for the group and have different answers."""
    max_rate_gap: Annotated[float, Field(gt=0.0, le=1.0)] = 0.2
    """Warn when an answer is this much more frequent in one group than in another (and not by chance)."""
    diversity: bool = True
    """Distinct n-grams and the Vendi score of the training prompts."""
    task_kind: Literal["style", "domain", "instruction", "new_task", "behaviour", "one_task"] | None = None
    """What the tune is to learn; the number of rows is held against what that usually takes."""

    @field_validator("patterns")
    @classmethod
    def _patterns_compile(cls, value: dict[str, str]) -> dict[str, str]:
        for name, pattern in value.items():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{name} is no regular expression ({error})") from None
        return value

    @property
    def policies(self) -> dict[str, str]:
        """kind -> policy of every kind of personal data and secret; those of Safe Harbor alone stand under
        `deidentify`."""
        own = self.pii.model_dump(exclude={"regions"})
        strict = ("off", "report", "redact", "drop")
        pii = {kind: max(policy, self.deidentify, key=strict.index) for kind, policy in own.items()}
        return {**pii, **self.secrets.model_dump()}
