"""Chat templates rendered as transformers renders them, in jinja2's immutable sandbox with a time and a size cap.

Same conventions as `apply_chat_template`: trim_blocks, lstrip_blocks, loop controls, tojson without HTML escapes,
raise_exception, strftime_now, and `{% generation %}` accepted (it changes nothing here: the mask needs no marker).
A template comes with a model and is untrusted code: every loop pass, macro call and output chunk checks the clock, and
operations that blow up memory in one call ("x" * 10**9, "".ljust(10**9), range(10**9)) are refused.
"""

from __future__ import annotations

import datetime
import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.lexer import Token, TokenStream
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from luthier.errors import TemplateError

MAX_TEMPLATE_CHARS = 1_000_000
MAX_RENDERED_CHARS = 20_000_000
MAX_RENDER_S = 5.0
_MAX_REPEAT = 10_000_000  # largest integer argument or factor that may reach a string operation
_LOOPS = ("for", "macro", "call")


class _Deadline(threading.local):
    """When the render that runs in this thread must have ended (monotonic seconds)."""

    at_s = float("inf")

    def check(self) -> None:
        if time.monotonic() > self.at_s:
            raise SecurityError(f"rendering took more than {MAX_RENDER_S:g} s")


_DEADLINE = _Deadline()


class _Ticking(Extension):
    """Puts a clock check at the head of every loop and macro body: a `{% luthier_tick %}` after the opening tag."""

    tags: ClassVar = {"luthier_tick"}

    def filter_stream(self, stream: TokenStream) -> Iterator[Token]:
        opening = pending = False
        for token in stream:
            if opening:
                pending = token.type == "name" and token.value in _LOOPS
            opening = token.type == "block_begin"
            yield token
            if pending and token.type == "block_end":
                pending = False
                yield Token(token.lineno, "block_begin", "{%")
                yield Token(token.lineno, "name", "luthier_tick")
                yield Token(token.lineno, "block_end", "%}")

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        return nodes.ExprStmt(self.call_method("tick"), lineno=lineno)

    def tick(self) -> None:
        _DEADLINE.check()


class _Generation(Extension):
    """`{% generation %} ... {% endgeneration %}` renders its body and nothing else."""

    tags: ClassVar = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=lineno)


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["*", "**"])

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Ticking, _Generation, loopcontrols])
        self.filters["tojson"] = _tojson
        for name in ("center", "indent", "format"):
            self.filters[name] = _capped(self.filters[name])
        del self.globals["lipsum"]
        self.globals |= {"raise_exception": _raise_exception}

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        sizes = [
            len(v) if isinstance(v, str | list | tuple) else abs(v) for v in (left, right) if not isinstance(v, float)
        ]
        if operator == "**" and max(sizes, default=0) > 1000:
            raise SecurityError("power of large numbers")
        if not all(isinstance(v, int | float) for v in (left, right)) and _product(sizes) > _MAX_REPEAT:
            raise SecurityError("repetition of a string or list that is too large")
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        if any(isinstance(v, int) and v > _MAX_REPEAT for v in (*args, *kwargs.values())):
            raise SecurityError("argument too large")
        return super().call(context, obj, *args, **kwargs)


def _product(values: list[int]) -> int:
    total = 1
    for value in values:
        total *= value
    return total


def _capped(filter_function: Any) -> Any:
    """The filter, refusing integer arguments that would build a giant string."""

    def run(value: Any, *args: Any, **kwargs: Any) -> Any:
        if any(isinstance(v, int) and v > _MAX_REPEAT for v in (*args, *kwargs.values())):
            raise SecurityError("filter argument too large")
        return filter_function(value, *args, **kwargs)

    return run


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


class ChatTemplate:
    """One compiled template. `variables`: what every render sees beside the messages (bos_token, user's settings).

    `strftime_now` tells the time of construction: prompts of one process are equal in training and evaluation.
    """

    def __init__(self, source: str, variables: dict[str, Any]) -> None:
        if len(source) > MAX_TEMPLATE_CHARS:
            raise TemplateError(f"the chat template has {len(source)} characters, more than {MAX_TEMPLATE_CHARS}")
        self.source = source
        self._variables = dict(variables)
        self._sandbox = _Sandbox()
        now = datetime.datetime.now()
        self._sandbox.globals["strftime_now"] = lambda form: now.strftime(form)
        try:
            self._compiled = self._sandbox.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(
                f"the chat template does not parse: line {error.lineno}: {error.message}",
                hint="compare chat_template.jinja with the one of the model's origin",
            ) from None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """The rendered conversation. tools: function schemas, None when there are none.

        Raises TemplateError with the template's own words when it refuses."""
        _DEADLINE.at_s = time.monotonic() + MAX_RENDER_S
        context = {
            **self._variables,
            "messages": [dict(message) for message in messages],
            "tools": None if tools is None else list(tools),
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        pieces, num_chars = [], 0
        try:
            for piece in self._compiled.generate(context):
                num_chars += len(piece)
                if num_chars > MAX_RENDERED_CHARS:
                    raise SecurityError(f"more than {MAX_RENDERED_CHARS} characters rendered")
                _DEADLINE.check()
                pieces.append(piece)
        except SecurityError as error:
            raise TemplateError(f"the chat template was stopped: {error}", hint="do not use this template") from None
        except (jinja2.TemplateError, RecursionError, MemoryError, OverflowError) as error:
            raise TemplateError(
                f"the chat template refuses this conversation: {error}", hint=_hint(str(error))
            ) from None
        except (TypeError, ValueError, KeyError, AttributeError, IndexError, ZeroDivisionError) as error:
            raise TemplateError(
                f"the chat template fails on this conversation: {type(error).__name__}: {error}"
            ) from None
        return "".join(pieces)


def _hint(message: str) -> str:
    lowered = message.lower()
    if "system" in lowered:
        return "this model knows no system role: leave data.system empty and put the instruction into the user text"
    if "alternat" in lowered:
        return "user and assistant turns must alternate, starting with user: merge neighbouring turns of one role"
    return "bring the row into the form that the template asks for"
