"""Secrets that no model may learn: private keys, tokens of known services, passwords that are assigned, and strings
too random to be words.

What: fixed prefixes and lengths where a service has them; elsewhere a cue (`password: ...`) or the entropy of a long
mixed string. Hex digests and UUIDs are left alone: they are random, but they open nothing.
Sources: the services' documented token formats; gitleaks' rule file for the idea of prefix + length; Shannon (1948).
"""

from __future__ import annotations

import math
import re
from collections import Counter

from luthier.text.findings import Finding, keep_apart

KINDS = ("private_key", "token", "password", "high_entropy")
MIN_ENTROPY_BITS = 4.2
MIN_PASSWORD_BITS = 2.5
_MIN_RANDOM_CHARS = 32

_PRIVATE_KEY = re.compile(
    r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"
    r".*?(?:-----END (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----|\Z)",
    re.DOTALL,
)
_TOKENS = (
    r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}",  # AWS access key id
    r"gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{22,255}",
    r"gl(?:pat|dt|rt|ptt)-[A-Za-z0-9_-]{20,}",
    r"xox[abeoprs]-[A-Za-z0-9-]{10,}|xapp-\d-[A-Za-z0-9-]{10,}",  # Slack
    r"AIza[A-Za-z0-9_-]{35}",  # Google
    r"(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{16,}",  # Stripe
    r"sk-(?:ant-|proj-|svcacct-)?[A-Za-z0-9_-]{20,}",  # model providers
    r"hf_[A-Za-z0-9]{30,}|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{50,}|dop_v1_[a-f0-9]{64}",
    r"SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{20,}",  # SendGrid
    r"\d{8,10}:AA[A-Za-z0-9_-]{33}",  # Telegram
    r"eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}",  # JSON Web Token
    r"(?<=AccountKey=)[A-Za-z0-9+/]{60,}={0,2}",  # Azure
)
_TOKEN = re.compile(rf"(?<![A-Za-z0-9_-])(?:{'|'.join(_TOKENS)})(?![A-Za-z0-9_])")
_ASSIGNED = re.compile(
    r"(?:pass(?:word|wd|phrase)|pwd|secret(?:[_-]?(?:access)?[_-]?key)?|api[_-]?key|access[_-]?key|auth[_-]?token"
    r"|client[_-]?secret|bearer)[\"']?(?:\s*[:=]\s*|\s+is\s+|\s+)[\"'`]?([^\s\"'`,;<>]{8,256})",
    re.IGNORECASE,
)
_LONG = re.compile(rf"(?<![\w/+=.-])[A-Za-z0-9_+/-]{{{_MIN_RANDOM_CHARS},512}}={{0,2}}(?![\w/+=-])")


def entropy_bits(text: str) -> float:
    """Shannon entropy of the characters of `text`, bits a character; 0 for the empty text."""
    counts = Counter(text).values()
    return -sum(n / len(text) * math.log2(n / len(text)) for n in counts)


def find_secrets(text: str) -> list[Finding]:
    """The secrets in `text`, by place, without overlaps."""
    found = [Finding(*m.span(), "private_key") for m in _PRIVATE_KEY.finditer(text)] if "-----BEGIN" in text else []
    found += [Finding(*m.span(), "token") for m in _TOKEN.finditer(text)]
    found += [Finding(*m.span(1), "password") for m in _ASSIGNED.finditer(text) if _looks_secret(m[1])]
    found += [Finding(*m.span(), "high_entropy") for m in _LONG.finditer(text) if _looks_random(m[0])]
    return keep_apart(found) if len(found) > 1 else found


def _looks_secret(value: str) -> bool:
    """Letters with digits or signs, and not a word, a placeholder or a variable."""
    bare = value.rstrip(".!?)")
    kinds = [any(map(test, bare)) for test in (str.isalpha, str.isdigit, lambda c: not c.isalnum())]
    is_name = re.fullmatch(r"[A-Za-z]+(?:[-_.'’/][A-Za-z]+)*", bare) or bare.startswith(("$", "{", "[", "http", "*"))
    return len(bare) >= 8 and sum(kinds) >= 2 and not is_name and entropy_bits(bare) >= MIN_PASSWORD_BITS


def _looks_random(value: str) -> bool:
    """Capitals, small letters and digits mixed, with the entropy of a random string; no path and no identifier."""
    mixed = all(any(map(test, value)) for test in (str.isupper, str.islower, str.isdigit))
    return mixed and entropy_bits(value) >= MIN_ENTROPY_BITS and value.count("/") + value.count("-") <= len(value) / 12
