"""Section `train`: how the weights move."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from luthier.config.base import Seed, Spec

LOWER_IS_BETTER = frozenset({"loss", "absolute_error", "teacher_kl"})
"""Dev figures of which less is better; of every other one more is."""


class TrainSpec(Spec):
    """Optimisation, evaluation while training, checkpoints."""

    sequence_len: Annotated[int, Field(ge=8)] = 1024
    """Longest row in tokens. Longer rows are refused or quarantined (data.over_length), never cut."""
    micro_batch_tokens: Annotated[int, Field(ge=8)] = 1024
    """Token budget of one packed, padding-free micro-batch. Tokens of the rows count, shared or not."""
    share_prefix: Literal["auto", "always", "never"] = "auto"
    """Compute a prompt prefix that rows of a micro-batch share once: the same rows in the same steps and the same
    losses, in less time and memory. auto = where it saves 5% of the tokens and adapter.lora_dropout is 0; with dropout
    the rows would share one draw of it in their prefix, which only `always` accepts."""
    gradient_accumulation_steps: Annotated[int, Field(ge=1)] = 1
    """Micro-batches per optimizer step; the loss is divided once by the step's trained tokens."""
    curriculum: Literal["none", "length"] = "none"
    """Order of rows in the first epoch: shuffled, or from short rows to long ones. Later epochs are shuffled."""
    num_epochs: Annotated[int, Field(ge=1)] = 1
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Stop after this many optimizer steps, even inside an epoch."""
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 2e-4
    lr_scheduler: Literal["linear", "cosine", "constant", "wsd"] = "linear"
    """After the warmup: fall over all the steps (linear, cosine), stay (constant), or stay and fall at the end (wsd:
    warmup, stable, decay)."""
    lr_decay_ratio: Annotated[float, Field(gt=0, le=1)] = 0.1
    """wsd: share of the steps, at the end, over which the rate falls."""
    lr_decay: Literal["linear", "cosine", "1-sqrt"] = "1-sqrt"
    """wsd: the shape of that fall."""
    lr_min_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The rate falls to this share of learning_rate, not to 0."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the steps over which the rate rises from 0."""
    layer_lr_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Every layer learns at this share of the rate of the layer above it; the last one, the head and the final norm at
    learning_rate, the embedding one layer below the first."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    weight_decay_on: Literal["matrices", "all"] = "matrices"
    """What decays: matrices = not norms, biases and other vectors, and not the embedding (a tied head is the
    embedding)."""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    adam_epsilon: Annotated[float, Field(gt=0)] = 1e-8
    max_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Gradients are scaled down to this norm; null = no clipping."""
    nonfinite: Literal["skip", "stop"] = "skip"
    """A step whose loss or gradient is not finite moves no weight. skip = its rows are named (skipped.jsonl) and the
    run goes on, unless that happens twice in a row or 3 times in 100 steps; stop = the run ends at the first one."""
    spike_sigmas: Annotated[float, Field(gt=0)] | None = 6.0
    """A step whose loss or gradient norm is this many standard deviations above the last 128 steps, and more than twice
    their mean, moves no weight, and its rows are named; judged from 64 steps on. null = take every step."""
    noise_scale: bool = True
    """Log the gradient noise scale: how many trained tokens (or what else the loss counts) a step should hold. Known
    where a step has two micro-batches or more (gradient_accumulation_steps)."""
    seed: Seed = 0
    eval_steps: Annotated[int, Field(ge=1)] | None = None
    """Evaluate on the dev split every n steps; null = at the end of each epoch."""
    eval_task_rows: Annotated[int, Field(ge=0)] = 0
    """Dev rows answered and graded at each evaluation (0 = loss only)."""
    save_steps: Annotated[int, Field(ge=1)] | None = None
    """Checkpoint every n steps; null = at the end of each epoch."""
    save_total_limit: Annotated[int, Field(ge=1)] = 2
    """Checkpoints kept; the best and the newest are never deleted."""
    early_stopping_patience: Annotated[int, Field(ge=1)] | None = None
    """Stop after this many evaluations without improvement; null = never."""
    metric_for_best: str = "loss"
    """Dev figure that chooses the best checkpoint: loss, a task metric (with eval_task_rows), or what the loss tells
    beside itself (reward_accuracy, reward_margin, accuracy, absolute_error). Which way is better is known."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Keep a moving average of the trained weights: this much of it stays at every update (less in the first ones,
    (1 + n) / (10 + n) at most). 0.99 to 0.999 is usual; null = none."""
    ema_keep: bool = True
    """true = the dev figures are the average's, and the average is what the run keeps; false = its dev loss is only
    logged beside the weights' (ema_loss)."""
    average_checkpoints: Annotated[int, Field(ge=2)] | None = None
    """At the end, average so many evaluated checkpoints; the mean is kept where its metric_for_best is not worse than
    the best checkpoint's. They stay on the disk until then, whatever save_total_limit says. null = none."""
    average_of: Literal["best", "last"] = "best"
    """Which checkpoints average_checkpoints takes."""
    gap_rows: Annotated[int, Field(ge=0)] = 0
    """Training rows whose loss is taken at every evaluation, the way the dev rows' is: their difference is the
    generalisation gap (figures train_loss and gap). 0 = none."""
    max_gap: Annotated[float, Field(gt=0)] | None = None
    """Stop when the gap is above this, in the units of the loss; null = never."""
    logging_steps: Annotated[int, Field(ge=1)] = 1
    trackers: tuple[str, ...] = ()
    """accelerate trackers by name: tensorboard, wandb, mlflow, ... metrics.jsonl is always written."""
    hang_timeout_s: Annotated[float, Field(gt=0)] | None = 1800.0
    """A run in which nothing has moved for so long, and for 20 times its longest move so far, is ended with its stacks
    in hang.txt; the same command then goes on from the last checkpoint. null = wait for ever."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """What training computes on; the run says which and why, and its record too. auto = the CPU, the only one there is
    so far; cuda is refused by name before anything is read, never replaced by something slower."""
    num_threads: Annotated[int, Field(ge=1)] | None = None
    """CPU threads; null = all physical cores given to the process."""

    @model_validator(mode="after")
    def _shares_fit(self) -> "TrainSpec":
        if self.max_gap is not None and not self.gap_rows:
            raise ValueError(f"max_gap {self.max_gap:g} needs gap_rows > 0: without them there is no gap")
        if self.lr_scheduler == "wsd" and self.warmup_ratio + self.lr_decay_ratio > 1:
            raise ValueError(
                f"warmup_ratio {self.warmup_ratio:g} and lr_decay_ratio {self.lr_decay_ratio:g} are more than the whole"
            )
        return self
