"""The bad rows and sets that `prepare` meets beside two hundred good rows, and what becomes of each.

`python -m tests.data.bad_input` writes the table into docs/bad_input.md; a test holds the page against it.
"""

from __future__ import annotations

import json
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs/bad_input.md"
MARKS = ("<!-- cases -->\n", "<!-- end of cases -->\n")


def chat(*turns: str, **last) -> dict:
    messages = [{"role": role, "content": text} for role, _, text in (turn.partition(":") for turn in turns)]
    return {"messages": [*messages[:-1], {**messages[-1], **last}]}


CALL = {"id": "c1", "function": {"name": "f", "arguments": "{}"}}
# name -> (the row, words of its reason; "" = kept)
CHAT = {
    "unknown role": (chat("user:q", "narrator:x", "assistant:a"), "unknown role"),
    "the assistant begins": (chat("assistant:a", "user:q"), "first turn"),
    "two user turns": (chat("user:q", "user:q", "assistant:a"), "two user turns"),
    "a system message in the middle": (chat("user:q", "system:s", "assistant:a"), "system message stands after"),
    "no assistant turn": (chat("user:q"), "no answer"),
    "an answer of white space": (chat("user:q", "assistant: \n\t"), "empty answer"),
    "content null": (chat("user:q", "assistant:", content=None), "no text content"),
    "an image part": (chat("user:q", "assistant:", content=[{"type": "image_url"}]), "not text"),
    "text parts": (chat("user:the parts", "assistant:", content=[{"type": "text", "text": "a"}]), ""),
    "a tool result that answers no call": (
        {"messages": [*chat("user:q", "assistant:", tool_calls=[CALL])["messages"],
                      {"role": "tool", "content": "x", "tool_call_id": "c9"}, {"role": "assistant", "content": "a"}]},
        "nobody made"),
    "two calls with one id": (
        {"messages": [*chat("user:q", "assistant:", tool_calls=[CALL, CALL])["messages"],
                      {"role": "tool", "content": "x", "tool_call_id": "c1"}, {"role": "assistant", "content": "a"}]},
        "the same id"),
    "a control token typed by the user": (chat("user:what is <|im_end|> for", "assistant:it ends a turn"), ""),
    "a template that raises": (chat("user:boom", "assistant:a"), "cannot be rendered"),
    "a row without turns": ({"messages": []}, "no turns"),
    "turns that are no list": ({"messages": "hello"}, "no turns"),
    "a row of another shape": ({"text": "x", "label": 3}, "no turns"),
}  # fmt: skip
# name -> (a raw line of the JSONL file, words of its reason; "" = kept)
LINES = {
    "a malformed line": (b'{"messages": [', "not valid JSON"),
    "single quotes": (b"{'messages': []}", "not valid JSON"),
    "two objects on a line": (b'{"a": 1}{"a": 2}', "two JSON values"),
    "an array for a row": (b"[]", "not an object"),
    "a duplicate key": (b'{"messages": 1, "messages": 2}', "duplicate key"),
    "NaN": (b'{"messages": NaN}', "NaN is not JSON"),
    "a lone surrogate": (b'{"messages": "\\ud800"}', "surrogate"),
    "nested 100,000 deep": (b'{"a":' * 100_000, "nested too deep"),
    "nothing but NUL bytes": (b"\x00" * 50, "not valid JSON"),
    "the bytes of half a surrogate": (b'{"messages": "\xed\xa0\x80"}', "not UTF-8"),
    "a duplicate key deep inside": (b'{"messages": [{"role": "user", "role": "assistant"}]}', "duplicate key"),
    "a list nested 5,000 deep": (b'{"messages": ' + b"[" * 5000 + b"]" * 5000 + b"}", "nested too deep"),
    "a carriage return where a line should end": (b'{"a": 1}\r{"a": 2}', "two JSON values"),
    "bytes of Latin-1": ('{"messages": "café"}'.encode("latin-1"), "not UTF-8"),
    "a number of 5,000 digits": (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
    "a whole number beyond 64 bits, beside the turns": (
        json.dumps({**chat("user:beyond 64 bits", "assistant:a"), "n": 2**70}).encode(), ""),
    "leading nulls in a list": (b'{"messages": [null, null]}', "not an object with"),
    "U+2028 and U+0085 inside a text": (
        json.dumps(chat("user:one\u2028two\x85three", "assistant:a"), ensure_ascii=False).encode(), ""),
    "NUL and control characters": (json.dumps(chat("user:a\x00b\x07c", "assistant:a")).encode(), ""),
    "CRLF at the end of a line": (json.dumps(chat("user:windows line", "assistant:a")).encode() + b"\r", ""),
}  # fmt: skip
# name -> (rows of preference data, words of their reason)
PAIRS = {
    "chosen equals rejected": ({"prompt": "q", "chosen": "a", "rejected": "a"}, "are the same"),
    "one side empty": ({"prompt": "q", "chosen": "a", "rejected": ""}, "empty rejected side"),
    "no prompt": ({"chosen": "a", "rejected": "b"}, "no prompt"),
}
CSV = {
    "an empty answer": (b"a question of many words,\n", "empty"),
    "a ragged row": (b"one cell\n", "1 cells"),
    "the text NA": (b"not available,NA\n", ""),
    "a field of a million characters": (b'"' + b"x" * 1_000_000 + b'",a\n', "not valid CSV"),
    "an embedded line end and quotes": (b'"two\nlines ""here""",a\n', ""),
    "a formula": (b"=1+1 is a formula,a\n", ""),
    "bytes of Latin-1": ("café,a\n".encode("latin-1"), "not UTF-8"),
}


def table() -> str:
    """The cases as a Markdown table."""
    out = ["| where | what | becomes |\n|---|---|---|\n"]
    for where, cases in (
        ("a chat row", CHAT),
        ("a JSONL line", LINES),
        ("a preference row", PAIRS),
        ("a CSV row", CSV),
    ):
        for name, (_, words) in cases.items():
            out.append(f"| {where} | {name} | {f'quarantined: {words}' if words else 'kept'} |\n")
    return "".join(out)


if __name__ == "__main__":
    head, _, rest = PAGE.read_text().partition(MARKS[0])
    PAGE.write_text(head + MARKS[0] + table() + MARKS[1] + rest.partition(MARKS[1])[2])
