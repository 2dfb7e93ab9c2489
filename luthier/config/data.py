"""Section `data`: which files, how their rows are read, cleaned, grouped and split."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from luthier.config.base import Seed, Spec
from luthier.config.data_checks import ChecksSpec
from luthier.config.data_mix import MixSpec
from luthier.config.data_style import StyleSpec

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class SplitSpec(Spec):
    """Shares of the groups that go to each split."""

    train: Share = 0.8
    dev: Share = 0.1
    test: Share = 0.1
    by: Literal["hash", "time", "column"] = "hash"
    """hash deals groups at random; time gives the oldest rows to train and the newest to test; column: the rows say it
    (train, dev, test)."""
    column: str | None = None
    """The column of times (ISO dates, or seconds or milliseconds since 1970) or of split names."""

    @model_validator(mode="after")
    def _shares_sum_to_one(self) -> "SplitSpec":
        if abs(self.train + self.dev + self.test - 1.0) > 1e-6:
            raise ValueError(f"train + dev + test must be 1.0, got {self.train + self.dev + self.test:g}")
        if (self.by == "hash") != (self.column is None):
            raise ValueError("split.by time or column needs split.column, and split.column needs one of them")
        return self


FormatName = Literal[
    "auto", "messages", "sharegpt", "anthropic", "alpaca", "prompt_completion", "columns", "text", "segments",
    "preference", "ranked", "kto", "stepwise",
    "explainchoice", "concisechoice", "summarizetldr", "camel_ai", "metharme", "reflection", "context_qa",
    "context_qa.load_v2", "creative_acr", "jeopardy",
]  # fmt: skip


class DataSpec(Spec):
    """Raw files in, prepared rows out."""

    train: tuple[str, ...] = Field(min_length=1)
    """Files, folders or globs (relative to the project file), or hub:org/name@revision. Rows of
    these files are split unless `test` is given."""
    test: tuple[str, ...] = ()
    """Files kept as the test split; training rows that leak into them are removed."""
    unlabelled: tuple[str, ...] = ()
    """Files of prompts without answers: more distinct inputs for the format gate."""
    format: FormatName = "auto"
    """Shape of a row; auto looks at the keys of the first 200 rows and says what it found."""
    fields: dict[str, str] = Field(default={})
    """Columns by their part of the format, where the files call them otherwise, e.g. {turns: dialogue, role: speaker,
    content: said} (needs `format`)."""
    roles: dict[str, Literal["system", "user", "assistant", "tool"]] = Field(default={})
    """Further names of roles in the files, e.g. {customer: user, agent: assistant}."""
    preferred_only: bool = False
    """Fine-tune on the preferred side of preference data: chosen answers, answers labelled desirable, answers whose
    steps are all right. Without it such files are refused."""
    prompt: str | None = None
    """Template of the user turn from columns, e.g. "{subject}: {body}" (format columns). In every text of this file
    ${NAME} is an environment variable; $${NAME} stands for those very characters."""
    completion: str | None = None
    """Template of the answer from columns, e.g. "{label}" (format columns)."""
    json_fields: tuple[str, ...] = ()
    """Columns that become one JSON object as the answer, in this order (instead of `completion`)."""
    text_unit: Literal["auto", "line", "document"] = "auto"
    """What is one row of a file of plain text: auto = a line of .txt, the whole of .md and .html."""
    answer_language: Literal["text", "markdown", "code", "python", "json"] = "text"
    """What answers are written in. All but text keep their white space as it is; python and json must parse."""
    allow_hub: bool = False
    """Whether files named hub:org/name@revision may be downloaded. Never done unasked."""
    system: str = ""
    """System message put in front of every row that has none."""
    json_schema: str | None = None
    """Path of a JSON Schema that answers must satisfy; turns the format gate on."""
    min_chars: Annotated[int, Field(ge=0)] = 1
    """Rows with shorter prompts are quarantined."""
    max_chars: Annotated[int, Field(ge=1)] = 100_000
    """Rows with longer prompts or answers are quarantined."""
    min_answer_chars: Annotated[int, Field(ge=0)] | None = None
    """Rows with shorter answers are quarantined; null = by what they are: 1 for an answer (a label may be one
    character), 2 for JSON, 16 for a document."""
    near_duplicate_threshold: Share = 0.8
    """Rows whose prompts have at least this Jaccard similarity (word 3-grams) to a kept row are removed; 1 = exact
    only."""
    leak_threshold: Share = 0.7
    """Rows at least this similar are one group and never straddle a split."""
    semantic_threshold: Share = 0.0
    """Above 0, rows whose prompts are that alike in vocabulary (cosine of TF-IDF reduced by SVD, no neural model) are
    one group too. 0.95 is a start."""
    decontaminate: tuple[str, ...] = ()
    """Evaluation files that training must not contain: rows that quote 13 words in a row or half of an item go. The
    rows of `test` always count as such."""
    frozen: str = "frozen_evals.json"
    """Register of frozen evaluation rows (`luthier data freeze`). Where it exists, no row of it, nor one like it, gets
    into train or dev."""
    on_frozen: Literal["quarantine", "error"] = "quarantine"
    """Set such rows aside by name, or refuse."""
    checks: ChecksSpec = ChecksSpec()
    mix: MixSpec = MixSpec()
    style: StyleSpec = StyleSpec()
    group_by: str | None = None
    """Column whose equal values are one group (customer, conversation, document)."""
    stratify_by: str | None = None
    """Column whose values keep their shares in every split."""
    split: SplitSpec = SplitSpec()
    split_seed: Seed = 0
    over_length: Literal["error", "quarantine"] = "error"
    """What to do with rows longer than train.sequence_len: never cut silently."""
    allow_no_dev: bool = False
    """Accept a run without a dev split; the verdict is then forfeited (inconclusive)."""
    limit_rows: Annotated[int, Field(ge=1)] | None = None
    """Use only this many kept training rows, group by group in an order that split_seed draws, for a quick try: a
    smaller limit takes part of what a larger one takes."""
    limit_dev_rows: Annotated[int, Field(ge=1)] | None = None
    """The same of dev rows, where the dev split is larger than an evaluation while training should be."""
    max_quarantine_share: Share = 0.2
    """Refuse to go on when more than this share of the rows is bad (duplicates not counted)."""

    @model_validator(mode="after")
    def _one_answer(self) -> "DataSpec":
        if self.completion is not None and self.json_fields:
            raise ValueError("give either completion or json_fields, not both")
        if self.format == "columns" and not self.prompt:
            raise ValueError('format columns needs a prompt template such as "{text}"')
        if self.prompt and self.format not in ("auto", "columns"):
            raise ValueError(f"a prompt template reads columns, so format {self.format} would not be used: drop one")
        if self.prompt and self.completion is None and not self.json_fields:
            raise ValueError("a prompt template needs completion or json_fields beside it")
        if self.fields and self.format in ("auto", "columns"):
            raise ValueError("fields rename the parts of a format: name it (format: messages, alpaca, ...)")
        if self.mix.upsample == "stratum" and self.stratify_by is None:
            raise ValueError(
                "mix.upsample stratum lifts the rare values of stratify_by, which is not set: name its column"
            )
        return self
