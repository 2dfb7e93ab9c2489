"""Runs P1-P8 on real rows and on planted conversations of the same shapes. Jobs refuse to train unless all pass.

Planted: for every sequence of roles seen in the rows, one conversation whose contents are canary words, and one whose
contents also hold every special token of the tokenizer.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

from luthier.chat.codec import ChatCodec
from luthier.chat.conversation import Shape, checked, rewrite, shape_of, strings_of, trained_turns
from luthier.chat.obligations import OBLIGATIONS, Case, Turn
from luthier.errors import TemplateError
from luthier.types import EncodedRow, Message, Row

_MAX_SHAPES = 16  # sequences of roles that get planted conversations
_BENIGN = "ok"
_PAIR: Shape = (("user", 0, 0, True), ("assistant", 0, 0, True))


@dataclass(frozen=True)
class Obligation:
    """One obligation: `detail` is its meaning when passed, the first counterexample when not."""

    id: str
    passed: bool
    detail: str
    num_checked: int


@dataclass(frozen=True)
class Proof:
    """The table of obligations; `refused`: rows that could not be encoded (data/ quarantines such rows)."""

    obligations: tuple[Obligation, ...]
    num_rows: int
    refused: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """True when every obligation holds (an obligation that was never checked does not)."""
        return all(o.passed for o in self.obligations)

    def as_json(self) -> dict[str, Any]:
        """JSON-able form for manifests."""
        return {"passed": self.passed, **asdict(self)}


def prove(codec: ChatCodec, rows: Sequence[Row], *, max_rows: int = 200) -> Proof:
    """Checks P1-P8 on up to `max_rows` rows spread evenly over `rows`, and on planted conversations. Raises nothing.

    Text rows have no template and take part in no obligation; when there are no chat rows at all, a planted
    user/assistant conversation stands in.
    """
    chats = [row for row in rows if row.messages]
    step = max(1, len(chats) // max_rows)
    sample = chats[::step][:max_rows]
    shapes = list(dict.fromkeys(_shape(row) for row in sample))[:_MAX_SHAPES]
    planted = [row for shape in shapes or [_PAIR] for row in _planted(codec, shape)]
    counterexamples: dict[str, str] = {}
    num_checked: Counter[str] = Counter()
    refused = []
    for row in [*planted, *sample]:
        try:
            cases = list(_cases(codec, row))
        except TemplateError as error:
            refused.append(f"{row.id}: {error}")
            continue
        for case in cases:
            for name, (_, check) in OBLIGATIONS.items():
                num_checked[name] += 1
                problem = check(codec.tokenizer, case)
                if problem is not None:
                    counterexamples.setdefault(name, f"{_where(row)}: {problem}")
    nothing = f"nothing could be checked: {refused[0]}" if refused else "nothing could be checked"
    table = tuple(
        Obligation(
            name,
            name not in counterexamples and num_checked[name] > 0,
            counterexamples.get(name, meaning if num_checked[name] else nothing),
            num_checked[name],
        )
        for name, (meaning, _) in OBLIGATIONS.items()
    )
    return Proof(table, len(sample), tuple(refused[:20]))


def _where(row: Row) -> str:
    return f"{row.source}:{row.line}" if row.source else f"row {row.id}"


def _canary(*parts: object) -> str:
    """A word that no corpus holds, the same in every run."""
    return "q" + hashlib.sha256(repr(parts).encode()).hexdigest()[:10]


def _shape(row: Row) -> Shape:
    """The row's shape; of messages that are no messages, whatever: encoding says what is wrong with them."""
    try:
        return shape_of(row.messages)
    except (AttributeError, KeyError, TypeError):
        return _PAIR


def _planted(codec: ChatCodec, shape: Shape) -> Iterator[Row]:
    """Two conversations of this shape: canaries, and canaries beside every special token of the tokenizer."""
    messages = tuple(_canaries(shape, index) for index in range(len(shape)))
    yield Row(id="planted-canaries", messages=messages)
    injection = " ".join(codec.tokenizer.special_tokens)
    if injection:
        poison: Callable[[str], str] = lambda text: f"{text} {injection} {text}" if text[:1] == "q" else text  # noqa: E731
        poisoned = [cast(Message, rewrite(message, poison)) for message in messages]
        yield Row(id="planted-injection", messages=tuple(poisoned))


def _canaries(shape: Shape, index: int) -> Message:
    """A message of `shape` whose texts are canaries."""
    role, num_calls, num_tools, has_content = shape[index]
    message = Message(role=role, content=_canary(shape, index) if has_content else "")
    if num_calls:
        message["tool_calls"] = [
            {
                "type": "function",
                "id": f"call{index:02d}{i:03d}",
                "function": {"name": _canary(shape, index, i), "arguments": {"argument": _canary(shape, index, i, 0)}},
            }
            for i in range(num_calls)
        ]
    if num_tools:
        schema = {"type": "object", "properties": {"argument": {"type": "string", "description": "text"}}}
        message["tools"] = [
            {
                "type": "function",
                "function": {"name": _canary(shape, index, "tool", i), "description": "text", "parameters": schema},
            }
            for i in range(num_tools)
        ]
    return message


def _words(message: Mapping[str, Any]) -> Iterator[str]:
    """The canaries of a planted message."""
    for text in strings_of(message):
        if text[:1] == "q":
            yield text.split()[0]


def _cases(codec: ChatCodec, row: Row) -> Iterator[Case]:
    """The cases of one row: one for each encoded row. Raises TemplateError when it cannot be encoded."""
    encoded = codec.encode(row)
    messages = checked(row.messages)
    turns = trained_turns(messages)
    planted = row.id.startswith("planted-")
    if len(encoded) == 1:
        yield _case(codec, encoded[0], messages, turns, planted)
        return
    for turn, one in zip(turns, encoded, strict=True):
        yield _case(codec, one, messages[: turn + 1], [turn], planted)


def _case(
    codec: ChatCodec, encoded: EncodedRow, messages: Sequence[Mapping[str, Any]], turns: list[int], planted: bool
) -> Case:
    tokenizer = codec.tokenizer
    benign = [m if m["role"] == "assistant" and not planted else {**m, "content": _BENIGN} for m in messages]
    benign = [_without(m, tuple(tokenizer.special_tokens)) for m in benign]
    foreign = tuple(word for m in messages if planted and m["role"] != "assistant" for word in _words(m))
    return Case(
        encoded=encoded,
        text=codec.renderer.text(messages),
        injected=any(token in text for m in messages for text in strings_of(m) for token in tokenizer.control_tokens),
        turns=tuple(Turn(tuple(codec.prompt_ids(messages[:i])), _answer_text(codec, messages, i)) for i in turns),
        control_counts=dict(Counter(tokenizer.encode(codec.renderer.text(benign)))),
        foreign=foreign,
        own=tuple(word for i in turns for word in _words(messages[i])) if planted else (),
    )


def _answer_text(codec: ChatCodec, messages: Sequence[Mapping[str, Any]], turn: int) -> str:
    """What the model must write in this turn: its content, or with tool calls what the template adds to the prompt, up
    to the stop token."""
    if not messages[turn].get("tool_calls"):
        return messages[turn]["content"]
    prompt = codec.renderer.text(messages[:turn], add_generation_prompt=True)
    text = codec.renderer.text(messages[: turn + 1])[len(prompt) :]
    stops = [codec.tokenizer.token_text(token) for token in codec.stop_ids]
    last = max(((text.rfind(stop), stop) for stop in stops if stop and stop in text), default=(len(text), ""))
    text = text[: last[0]].rstrip()
    closing = next((t for t in codec.tokenizer.special_tokens if text.endswith(t)), "")
    return text.removesuffix(closing)


def _without(message: Mapping[str, Any], tokens: tuple[str, ...]) -> Mapping[str, Any]:
    def clean(text: str) -> str:
        for token in tokens:
            text = text.replace(token, _BENIGN)
        return text

    return rewrite(message, clean)
