"""The proof obligations P1-P8 on encoded conversations, as pure checks: `None` when met, else what is wrong.

Each compares what the codec produced (ids, trained flags, serving prompts) with an independent route: plain
tokenisation of the rendered text, decoding, counts. None of them reads the codec's own spans.
Source: luthier's research on chat templates and loss masks (eval_data.md, B7 43).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from luthier.bases.tokenizer import Tokenizer
from luthier.types import EncodedRow


@dataclass(frozen=True)
class Turn:
    """One assistant turn to be trained: the ids serving would feed the model before it, and its content."""

    prompt_ids: tuple[int, ...]
    content: str


@dataclass(frozen=True)
class Case:
    """One encoded row and what is known about it from elsewhere.

    text: what the template renders for this row. injected: the contents hold control tokens. turns: in order.
    control_counts: id -> how often the template itself writes that control token. foreign: texts of the other roles
    that must never be trained (canaries), own: texts of the assistant that must be.
    """

    encoded: EncodedRow
    text: str
    injected: bool
    turns: tuple[Turn, ...]
    control_counts: dict[int, int]
    foreign: tuple[str, ...] = ()
    own: tuple[str, ...] = ()


def runs(trained: tuple[bool, ...]) -> list[tuple[int, int]]:
    """Maximal runs [start, end) of trained tokens."""
    edges = [i for i in range(len(trained) + 1) if (i > 0 and trained[i - 1]) != (i < len(trained) and trained[i])]
    return list(zip(edges[::2], edges[1::2], strict=True))


def plain_ids(tokenizer: Tokenizer, case: Case) -> str | None:
    """P1: the ids are those of the rendered text, tokenised independently (with injected tokens: they spell it)."""
    if not case.injected:
        expected = tuple(tokenizer.encode(case.text))
        if case.encoded.ids == expected:
            return None
        at = next((i for i, (a, b) in enumerate(zip(case.encoded.ids, expected, strict=False)) if a != b), -1)
        return (
            f"ids differ from plain tokenisation from token {at} on ({len(case.encoded.ids)} against {len(expected)})"
        )
    # Control tokens may swallow white space, and SentencePiece decodes blanks beside them in its own way.
    plain = "".join(tokenizer.decode(tokenizer.encode(case.text)).split())
    spelt = "".join(tokenizer.decode(case.encoded.ids).split())
    return None if spelt == plain else "ids do not spell the rendered text"


def starts_at_prompt(tokenizer: Tokenizer, case: Case) -> str | None:
    """P2: every serving prompt is a prefix of the ids, and a trained run starts exactly behind it."""
    starts = [start for start, _ in runs(case.encoded.trained)]
    wanted = [len(turn.prompt_ids) for turn in case.turns]
    for turn in case.turns:
        if case.encoded.ids[: len(turn.prompt_ids)] != turn.prompt_ids:
            return "the serving prompt is not a prefix of the training ids"
    return None if starts == wanted else f"trained runs start at tokens {starts}, the prompts end at {wanted}"


def spells_answer(tokenizer: Tokenizer, case: Case) -> str | None:
    """P3: the trained tokens of each turn spell its content and the stop token, white space aside."""
    spans = runs(case.encoded.trained)
    if len(spans) != len(case.turns):
        return f"{len(spans)} trained runs for {len(case.turns)} assistant turns"
    for (start, end), turn in zip(spans, case.turns, strict=True):
        ids = case.encoded.ids[start:end]
        body = ids[:-1] if ids[-1] in tokenizer.stop_ids else ids
        specials = set(tokenizer.special_tokens.values())
        while body and body[-1] in specials:  # a template may close a channel before the stop token
            body = body[:-1]
        got, wanted = tokenizer.decode(body).split(), turn.content.split()
        if got != wanted:
            return f"trained text is {' '.join(got)[:60]!r}, the answer is {' '.join(wanted)[:60]!r}"
    return None


def ends_with_stop(tokenizer: Tokenizer, case: Case) -> str | None:
    """P4: the last trained token of each turn is a stop token of the server."""
    for _, end in runs(case.encoded.trained):
        last = case.encoded.ids[end - 1]
        if last not in tokenizer.stop_ids:
            following = tokenizer.token_text(case.encoded.ids[end]) if end < len(case.encoded.ids) else "nothing"
            stops = ", ".join(sorted(tokenizer.token_text(i) for i in tokenizer.stop_ids)) or "none"
            return f"an answer ends with {tokenizer.token_text(last)!r} (then {following!r}); stop tokens: {stops}"
    return None


def trains_only_answers(tokenizer: Tokenizer, case: Case) -> str | None:
    """P5: text planted in other roles is never trained, text planted in answers always is."""
    trained = tokenizer.decode([i for i, flag in zip(case.encoded.ids, case.encoded.trained, strict=True) if flag])
    leaked = [text for text in case.foreign if text in trained]
    if leaked:
        return f"text of another role is trained: {leaked[0]!r}"
    lost = [text for text in case.own if text not in trained]
    return f"text of an answer is not trained: {lost[0]!r}" if lost else None


def control_tokens_counted(tokenizer: Tokenizer, case: Case) -> str | None:
    """P6: every special token occurs exactly as often as the template itself writes it."""
    counts = Counter(case.encoded.ids)
    for text, token_id in tokenizer.special_tokens.items():
        wanted = case.control_counts.get(token_id, 0)
        if counts[token_id] != wanted:
            return f"{text!r} occurs {counts[token_id]} times, the template writes it {wanted} times"
    return None


def one_bos(tokenizer: Tokenizer, case: Case) -> str | None:
    """P7: at most one BOS opens the row, and training and serving agree on it."""
    bos = tokenizer.bos_id
    if bos is None:
        return None
    if case.encoded.ids[:2] == (bos, bos):
        return f"two {tokenizer.token_text(bos)!r} at the start"
    for turn in case.turns:
        if (turn.prompt_ids[:1] == (bos,)) != (case.encoded.ids[:1] == (bos,)):
            return f"{tokenizer.token_text(bos)!r} opens only one of training row and serving prompt"
    return None


def nothing_cut(tokenizer: Tokenizer, case: Case) -> str | None:
    """P8: no answer was cut: the row spells the whole rendered text, and every turn has trained tokens."""
    if not case.injected and len(case.encoded.ids) < len(tokenizer.encode(case.text)):
        return f"the row has {len(case.encoded.ids)} tokens, the conversation {len(tokenizer.encode(case.text))}"
    if case.turns and len(case.encoded.ids) <= len(case.turns[-1].prompt_ids):
        return "the last answer was cut off"
    if len(runs(case.encoded.trained)) < len(case.turns):
        return f"{len(runs(case.encoded.trained))} trained answers of {len(case.turns)}"
    return None


Check = Callable[[Tokenizer, Case], str | None]
OBLIGATIONS: dict[str, tuple[str, Check]] = {
    "P1": ("ids equal the plain tokenisation of the rendered text", plain_ids),
    "P2": ("the serving prompt is a prefix, training starts right behind it", starts_at_prompt),
    "P3": ("trained tokens spell the answer and its stop token", spells_answer),
    "P4": ("the last trained token is a stop token of the server", ends_with_stop),
    "P5": ("planted text of other roles is never trained", trains_only_answers),
    "P6": ("control tokens typed into content stay text", control_tokens_counted),
    "P7": ("at most one BOS, the same in training and serving", one_bos),
    "P8": ("no answer is cut", nothing_cut),
}
