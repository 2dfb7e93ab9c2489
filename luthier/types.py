"""The few nouns that cross rooms. No torch, no third-party imports: arrays are typed by protocol.

Shape legend: T tokens of a packed micro-batch, D documents in it (cu_seqlens has D + 1 entries), K kept positions, S
sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, Protocol, TypedDict


class _MessageParts(TypedDict, total=False):
    """What only some turns have."""

    tool_calls: list[dict[str, Any]]
    tool_call_id: str
    name: str
    tools: list[dict[str, Any]]
    train: bool


class Message(_MessageParts):
    """One turn of a conversation. `role` is system, user, assistant or tool.

    tool_calls: what the assistant calls, as OpenAI writes it, arguments parsed: {"type": "function", "id"?, "function":
    {"name", "arguments": {}}}. tool_call_id, name: which call a tool turn answers. tools: the functions that may be
    called, as JSON Schemas; on the first user turn, so that they go wherever the prompt goes. train: False = an
    assistant turn that is context only and carries no loss.
    """

    role: str
    content: str


@dataclass(frozen=True)
class Row:
    """One canonical example. Either `messages` (chat) or `text` (plain document) is set, never both.

    id: content hash, stable across runs. source/line: where it came from (line is 1-based; 0 = not a line format).
    group: rows of one group never straddle a split; filled in by the splitter. columns: the raw row's other columns,
    JSON-able, for graders that need more than the last assistant turn.
    rejected: the turns after the same prompt that were not preferred; `messages` then ends with the preferred ones.
    label: whether the answer is desirable (unpaired preference). segments: `text` in pieces, (text, trained).
    steps: the last answer in pieces, (text, is right), for step-wise rewards.
    is_replay: general data mixed in against forgetting: it trains, and never stands for the task.
    """

    id: str
    messages: tuple[Message, ...] = ()
    text: str = ""
    source: str = ""
    line: int = 0
    group: str = ""
    columns: dict[str, Any] = field(default_factory=dict)
    rejected: tuple[Message, ...] = ()
    label: bool | None = None
    segments: tuple[tuple[str, bool], ...] = ()
    steps: tuple[tuple[str, bool], ...] = ()
    is_replay: bool = False

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The messages before the last assistant turn: what a server would be asked."""
        last = (
            len(self.messages) - 1 if self.messages and self.messages[-1]["role"] == "assistant" else len(self.messages)
        )
        return self.messages[:last]

    @property
    def answer(self) -> str:
        """The last assistant turn, or '' when the row has none."""
        return self.messages[-1]["content"] if self.messages and self.messages[-1]["role"] == "assistant" else ""


@dataclass(frozen=True)
class EncodedRow:
    """Token ids of one training row and which of them carry loss. len(ids) == len(trained); trained[0] is False.

    weights: of each token's loss, () = 1 everywhere. companions: further sequences that the loss must see beside this
    one (the rejected side of a pair); they never part from it. All rows of a set have equally many.
    """

    row_id: str
    ids: tuple[int, ...]
    trained: tuple[bool, ...]
    weights: tuple[float, ...] = ()
    companions: tuple[EncodedRow, ...] = ()

    @property
    def sequences(self) -> tuple[EncodedRow, ...]:
        """Itself, then its companions."""
        return (self, *self.companions)

    @property
    def num_tokens(self) -> int:
        """Tokens of all its sequences."""
        return sum(len(sequence.ids) for sequence in self.sequences)


class RowSet(Protocol):
    """Encoded rows by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> EncodedRow: ...


@dataclass(frozen=True)
class StepRows:
    """The rows of one step. micro_batches: places in `rows`; none = there is nothing to learn from. num_tokens: of the
    rows. figures: what is logged of how they came about.
    """

    rows: RowSet
    micro_batches: Sequence[Sequence[int]]
    num_tokens: int
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """One packed, padding-free micro-batch (numpy int arrays, or torch tensors after `engine` moved them).

    ids_T; positions_T restart at 0 in every document; cu_seqlens (D + 1) document bounds; keep_K: indices t whose
    hidden state predicts a trained token; targets_K: those tokens (ids[t + 1], never across documents); row_ids: the
    rows in it. parents_D: None, or for each document the index of the earlier document that it continues (a prefix
    shared by several rows, computed once), -1 for none. A parent has no parent, stands right before its children, is no
    row and carries no loss; a child's positions go on after it.
    sequences_K: which sequence each kept position belongs to; those of row_ids[i] are numbered from i times the
    sequences of a row. columns: what else a loss `needs`, by name; names end in _K (a value for each kept position), _S
    (for each sequence) or _R (for each row).
    """

    ids_T: Any
    positions_T: Any
    cu_seqlens: Any
    keep_K: Any
    targets_K: Any
    row_ids: tuple[str, ...] = ()
    parents_D: Any = None
    sequences_K: Any = None
    columns: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_trained(self) -> int:
        """Number of tokens that carry loss."""
        return len(self.targets_K)

    @property
    def num_represented(self) -> int:
        """Tokens of its rows, a shared prefix counted for each of them; len(ids_T) is what is computed."""
        if self.parents_D is None:
            return len(self.ids_T)
        bounds, parents = ([int(x) for x in xs] for xs in (self.cu_seqlens, self.parents_D))
        lengths = [stop - start for start, stop in pairwise(bounds)]
        has_children = set(parents)
        rows = [document for document in range(len(parents)) if document not in has_children]
        return sum(lengths[row] + (lengths[parents[row]] if parents[row] >= 0 else 0) for row in rows)


@dataclass(frozen=True)
class MachineProfile:
    """What a machine can do, as measured by the start-up probe or as stated in the catalogue.

    name: processor or GPU. rates_gflops: achieved matrix-product rate by dtype (float32, bfloat16, int8), in 1e9
    operations a second. bandwidth_gb_s: memory copy rate, 1e9 bytes a second. memory_bytes: what a run may use.
    usd_per_hour: rent; None = own machine, unpriced. probed: True when measured here.
    """

    name: str
    device: Literal["cpu", "cuda"]
    rates_gflops: dict[str, float]
    bandwidth_gb_s: float
    memory_bytes: int
    num_threads: int = 1
    usd_per_hour: float | None = None
    probed: bool = False


@dataclass(frozen=True)
class Completion:
    """One sampled answer. `finish` is "stop" (a stop token came) or "length" (the cap came first). logps: natural log p
    of each of `ids` under what it was drawn from; () when nothing was drawn (greedy), or nobody knows. Completions that
    say the same are equal: these numbers may differ by rounding.
    """

    text: str
    ids: tuple[int, ...]
    finish: Literal["stop", "length"]
    logps: tuple[float, ...] = field(default=(), compare=False)


class Progress(Protocol):
    """Callback for progress bars: `done` of `total` units, with figures worth showing (loss=..., tokens_per_s=...)."""

    def __call__(self, done: int, total: int, /, **figures: float) -> None: ...


class Sampler(Protocol):
    """Anything that answers prompts: local model, merged folder, live server."""

    name: str

    def sample(
        self,
        prompts: Sequence[Sequence[Message]],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> list[Completion]:
        """One completion a prompt, in order. temperature 0 is greedy; `seed` makes sampling reproducible per prompt."""
        ...


class Scorer(Protocol):
    """Anything that tells log-probabilities (natural logarithm)."""

    def score(self, pairs: Sequence[tuple[Sequence[Message], str]]) -> list[list[float]]:
        """log p of every answer token (its stop token included), per (prompt, answer) pair."""
        ...

    def score_texts(self, texts: Sequence[str]) -> list[tuple[float, int]]:
        """(sum of log p, number of UTF-8 bytes) per plain text."""
        ...


OnEval = Callable[[int, Sampler], dict[str, float]]
"""Handed to the engine: (step, sampler of the model in training) -> metrics by name."""
