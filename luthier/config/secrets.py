"""What looks like a secret, and how it is kept out: refused in a project file, masked in everything that is printed.

Two rules. The forms that issuers gave their tokens (as secret scanners use them: each issuer's own documentation), and
the values of this process's environment variables whose names say secret (HF_TOKEN, WANDB_API_KEY,
AWS_SECRET_ACCESS_KEY, ...). Values of the project file end in manifests, reports and trackers, so none may be one; the
libraries that need a token read it from the environment by themselves.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping

MASK = "[secret]"
MIN_CHARS = 8  # a shorter value of a secret variable ("none", "0") would mask ordinary words
_FORMS = {
    "Hugging Face token": r"\bhf_[A-Za-z0-9]{20,}",
    "Weights & Biases key": r"\bwandb_v1_[A-Za-z0-9_]{20,}",
    "OpenAI-style key": r"\bsk-[A-Za-z0-9_-]{20,}",
    "AWS access key id": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{22,})",
    "GitLab token": r"\bglpat-[A-Za-z0-9_-]{20,}",
    "Google API key": r"\bAIza[0-9A-Za-z_-]{35}",
    "Slack token": r"\bxox[abeprs]-[A-Za-z0-9-]{10,}",
    "package upload token": r"\bpypi-[A-Za-z0-9_-]{40,}",
    "JSON web token": r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}",
    "private key": r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----",
    "password in an address": r"(?<=://)[^\s/@:]*:[^\s/@]+(?=@)",
}
_PATTERNS = {kind: re.compile(form) for kind, form in _FORMS.items()}
_SECRET_NAME = re.compile(
    r"(?:^|_)(?:TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY(?:_ID)?|SECRET_KEY|PRIVATE_KEY|AUTH)(?:$|_)",
    re.IGNORECASE,
)


def secret_variables(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """value -> name of the environment variables whose names say secret; paths, words and short values are none."""
    variables = os.environ if environ is None else environ
    return {
        value: name
        for name, value in variables.items()
        if says_secret(name)
        and len(value) >= MIN_CHARS
        and not value.isalpha()
        and not value.startswith(("/", "~", "."))
    }


def says_secret(name: str) -> bool:
    """Whether an environment variable of this name is taken for a secret."""
    return bool(_SECRET_NAME.search(name))


def find_secret(text: str) -> str:
    """What kind of secret `text` holds, or ''. The words never hold the secret itself."""
    for value, name in secret_variables().items():
        if value in text:
            return f"the value of the environment variable {name}"
    return next((kind for kind, pattern in _PATTERNS.items() if pattern.search(text)), "")


def redact(text: str) -> str:
    """`text` with every secret in it masked."""
    for value in sorted(secret_variables(), key=len, reverse=True):
        text = text.replace(value, MASK)
    for pattern in _PATTERNS.values():
        text = pattern.sub(MASK, text)
    return text


def strings_in(value: object, where: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, text) of every string in a parsed YAML value, keys included."""
    if isinstance(value, dict):
        for key, inner in value.items():
            dotted = f"{where}.{key}" if where else str(key)
            yield where, str(key)
            yield from strings_in(inner, dotted)
    elif isinstance(value, list):
        for position, inner in enumerate(value):
            yield from strings_in(inner, f"{where}.{position}")
    elif value is not None:
        yield where, str(value)
