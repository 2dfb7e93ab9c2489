"""A small interpreter for the part of Go's text/template that Ollama's chat templates are written in.

Ollama renders prompts with Go templates, Hugging Face with Jinja: a Modelfile is right only if both give the same
text. So the very text that is written into the Modelfile is rendered here and compared. What is known: {{- trim -}},
comments, if / else if / else / end, range with variables, assignment, fields (.Role, $.System), strings, integers,
and the functions eq ne lt le gt ge and or not len slice. Everything else raises. Source: pkg.go.dev/text/template;
ollama template/template.go.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from luthier.errors import TemplateError
from luthier.types import Message

_TAG = re.compile(r"\{\{(-\s)?(.*?)(\s-)?\}\}", re.DOTALL)
_TOKEN = re.compile(r'\s*("(?:\\.|[^"\\])*"|:=|\$\w*(?:\.\w+)*|\.\w+(?:\.\w+)*|\.|-?\d+|\w+|[(),])')
_COMPARE = {
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}
_Node = tuple[str, Any, Any, Any]


def render_go(template: str, messages: Sequence[Message]) -> str:
    """The prompt as Ollama renders it: .Messages are the turns (.Role, .Content), .System the system texts."""
    system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
    turns = [{"Role": message["role"], "Content": message["content"]} for message in messages]
    root = {"Messages": turns, "System": system}
    nodes, rest = _parse(_lex(template), 0)
    if rest is not None:
        raise TemplateError(f"Go template: {{{{ {rest} }}}} without a block")
    pieces: list[str] = []
    _run(nodes, root, {"$": root}, pieces)
    return "".join(pieces)


def _lex(template: str) -> list[tuple[str, str]]:
    """('text' | 'tag', content) in order, with the trim markers applied."""
    items: list[tuple[str, str]] = []
    cursor, trim_next = 0, False
    for match in _TAG.finditer(template):
        text = template[cursor : match.start()]
        text = text.lstrip() if trim_next else text
        items.append(("text", text.rstrip() if match[1] else text))
        if not match[2].strip().startswith("/*"):
            items.append(("tag", match[2].strip()))
        cursor, trim_next = match.end(), bool(match[3])
    items.append(("text", template[cursor:].lstrip() if trim_next else template[cursor:]))
    return items


def _parse(items: list[tuple[str, str]], depth: int) -> tuple[list[_Node], str | None]:
    """Consumes `items` up to the `end` or `else` of the open block; returns the nodes and that tag."""
    nodes: list[_Node] = []
    while items:
        sort, content = items.pop(0)
        word = content.split(maxsplit=1)[0] if sort == "tag" and content else ""
        if sort == "text":
            nodes.append(("text", content, None, None))
        elif word in ("end", "else"):
            return nodes, content
        elif word in ("if", "range"):
            nodes.append(_parse_block(word, content[len(word) :], items, depth + 1))
        else:
            nodes.append(("value", content, None, None))
    if depth:
        raise TemplateError("Go template: a block is never closed")
    return nodes, None


def _parse_block(word: str, head: str, items: list[tuple[str, str]], depth: int) -> _Node:
    body, closing = _parse(items, depth)
    otherwise: list[_Node] = []
    if closing is not None and closing.startswith("else if"):
        otherwise = [_parse_block("if", closing.removeprefix("else if"), items, depth)]
    elif closing == "else":
        otherwise, closing = _parse(items, depth)
        if closing != "end":
            raise TemplateError(f"Go template: {{{{ {closing} }}}} after else")
    return (word, head.strip(), body, otherwise)


def _run(nodes: list[_Node], dot: Any, variables: dict[str, Any], out: list[str]) -> None:
    for sort, head, body, otherwise in nodes:
        if sort == "text":
            out.append(head)
        elif sort == "range":
            _run_range(head, body, dot, variables, out)
        elif sort == "if":
            _run(body if _truth(_evaluate(head, dot, variables)) else otherwise, dot, variables, out)
        elif assignment := re.fullmatch(r"(\$\w+)\s*:=\s*(.+)", head, re.DOTALL):
            variables[assignment[1]] = _evaluate(assignment[2], dot, variables)
        else:
            out.append(str(_evaluate(head, dot, variables)))


def _run_range(head: str, body: list[_Node], dot: Any, variables: dict[str, Any], out: list[str]) -> None:
    named = re.fullmatch(r"(?:(\$\w+)\s*,\s*(\$\w+)\s*:=\s*)?(.+)", head, re.DOTALL)
    if named is None:
        raise TemplateError(f"Go template: cannot read range {head!r}")
    for index, item in enumerate(_evaluate(named[3], dot, variables)):
        scope = dict(variables)
        if named[1]:
            scope |= {named[1]: index, named[2]: item}
        _run(body, item, scope, out)


def _evaluate(expression: str, dot: Any, variables: dict[str, Any]) -> Any:
    tokens, cursor = [], 0
    while cursor < len(expression.rstrip()):
        match = _TOKEN.match(expression, cursor)
        if match is None:
            raise TemplateError(f"Go template: cannot read {expression!r}")
        tokens.append(match[1])
        cursor = match.end()
    value = _pipeline(tokens, dot, variables)
    if tokens:
        raise TemplateError(f"Go template: {tokens[0]!r} is left over in {expression!r}")
    return value


def _pipeline(tokens: list[str], dot: Any, variables: dict[str, Any]) -> Any:
    """One operand, or a function with all operands up to the closing parenthesis."""
    if not tokens or not re.fullmatch(r"[a-z]\w*", tokens[0]):
        return _operand(tokens, dot, variables)
    name, operands = tokens.pop(0), []
    while tokens and tokens[0] != ")":
        operands.append(_operand(tokens, dot, variables))
    return _call(name, operands)


def _operand(tokens: list[str], dot: Any, variables: dict[str, Any]) -> Any:
    if not tokens:
        raise TemplateError("Go template: a value is missing")
    token = tokens.pop(0)
    if token == "(":
        value = _pipeline(tokens, dot, variables)
        if not tokens or tokens.pop(0) != ")":
            raise TemplateError("Go template: a parenthesis is never closed")
        return value
    if token.startswith('"'):
        return json.loads(token)
    if re.fullmatch(r"-?\d+", token):
        return int(token)
    name, *fields = token.split(".")
    if token == ".":
        return dot
    if name and name not in variables:
        raise TemplateError(f"Go template: {name!r} is not known")
    value = variables[name] if name else dot
    for field in fields:
        if not isinstance(value, dict) or field not in value:
            raise TemplateError(f"Go template: .{field} is not known")
        value = value[field]
    return value


def _call(name: str, operands: list[Any]) -> Any:
    if name == "eq":
        return any(operands[0] == other for other in operands[1:])
    if name in _COMPARE:
        return _COMPARE[name](*operands)
    if name == "and":
        return next((value for value in operands if not _truth(value)), operands[-1])
    if name == "or":
        return next((value for value in operands if _truth(value)), operands[-1])
    if name == "not":
        return not _truth(operands[0])
    if name == "len":
        return len(operands[0])
    if name == "slice":
        return operands[0][slice(*operands[1:]) if len(operands) > 2 else slice(operands[1], None)]
    raise TemplateError(f"Go template: the function {name!r} is not known")


def _truth(value: Any) -> bool:
    """Go's truth: false, 0, empty string and empty list are false; so are Python's."""
    return bool(value)
