"""What answers are written in: whose white space is kept, what must parse, and how short is too short.

Why: an indented line without its indentation is another program, and one row of broken code teaches broken code. A
language model sees white space as tokens, so `strip` changes what is learnt.
Source: the grammars themselves (Python's `ast`, JSON's parser); fenced blocks as in CommonMark.
"""

from __future__ import annotations

import ast
import re
import warnings

from luthier.data.strict_json import StrictJson
from luthier.data.turns import RowError

KEEPS_SPACE = {"text": False, "markdown": True, "code": True, "python": True, "json": True}
"""answer_language -> is outer white space part of the text?"""
MIN_ANSWER_CHARS = {"text": 1, "markdown": 1, "code": 1, "python": 1, "json": 2}
"""answer_language -> least characters of an answer: a label may be one character, a JSON answer is {} at least."""
MIN_DOCUMENT_CHARS = 16
"""Least characters of a document: fewer say nothing that could be learnt without a question."""
_FENCE = re.compile(
    r"^(?P<mark>```+|~~~+)[ \t]*(?P<language>[\w+-]*)[^\n]*\n(?P<code>.*?)^(?P=mark)[ \t]*$", re.M | re.S
)
_PYTHON = ("", "py", "python", "python3")


def check_parses(answer: str, language: str) -> None:
    """Raises RowError when `answer` is declared Python or JSON and does not parse. In Markdown around code, the fenced
    blocks of that language are what must parse."""
    if language not in ("python", "json"):
        return
    wanted = _PYTHON if language == "python" else ("", "json")
    blocks = [m["code"] for m in _FENCE.finditer(answer) if m["language"].lower() in wanted]
    for code in blocks or [answer]:
        problem = _python_problem(code) if language == "python" else _json_problem(code)
        if problem:
            raise RowError(f"the answer is not {'Python' if language == 'python' else 'JSON'}: {problem}")


def _python_problem(code: str) -> str:
    """Why `code` is no Python, "" if it is. A part of a function may be indented as a whole."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its SyntaxWarnings are the row's business
            ast.parse(code if code[:1] not in " \t" else f"if True:\n{code}")
    except SyntaxError as error:
        return f"{error.msg} at line {error.lineno}"
    except (ValueError, RecursionError, MemoryError) as error:
        return str(error)[:60] or "too deeply nested"
    return ""


def _json_problem(code: str) -> str:
    try:
        StrictJson().whole(code)
    except ValueError as error:
        return str(error)[:80]
    return ""
