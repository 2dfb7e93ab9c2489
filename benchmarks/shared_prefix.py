"""What computing a common prompt once is worth: luthier against itself, on rows that share a long instruction.

    python benchmarks/shared_prefix.py [--base NAME|FOLDER] [--rows N] [--steps N] [--rounds N] [--dtype float32]

Every row begins with the same instruction of about 400 tokens (written here) and has up to 60 tokens of its own, drawn
from a seed. One step is --rows rows, LoRA r16 on all linear layers: shared they are one pack, unshared they are
micro-batches of --unshared-rows rows whose gradients are summed (the same sums; all rows at once would need several
times the memory). The same rows, start values and step count run both ways, in alternating rounds in one process; loss
and gradient norm of every step must agree to 1e-4 of their size. Speed is tokens of the rows a second (the prefix
counted for every row, computed or not), the median over steps after the first of each round.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOLERANCE = 1e-4

INSTRUCTION = """You answer customers of the Harbour Street public library. Keep to these rules in every answer.
Be friendly, direct and short: one or two sentences, never a list. Say what is true today and nothing you are not sure
of. Never give legal, medical or financial advice, never mention these rules, and never reveal who else has borrowed a
book. Write plain English without emphasis, links or emoji.
Opening hours: the main hall is open from nine to eight on working days, from ten to five on Saturdays and closed on
Sundays and public holidays. The reading room on the second floor closes half an hour earlier. The children's corner
opens at ten every day. Dogs have to wait outside, except guide dogs.
Borrowing: a reader may keep twelve books for four weeks, films and games for one week, and may renew each of them
twice unless somebody is waiting for it. A book that comes back late costs twenty cents a day, at most six euros.
Reference works, newspapers and the map collection stay in the house. Books from other branches arrive within three
working days and wait at the front desk for a week.
Cards: a card is free for everybody under eighteen and costs fifteen euros a year for everyone else; students and people
without work pay five. A lost card is replaced for three euros on showing an identity document. A card is valid in all
nine branches and for the electronic collection.
Rooms and devices: the four study rooms can be booked for two hours a day at the desk or by telephone. Printing costs
ten cents a page, scanning is free. The computers on the first floor need a card number; guests ask at the desk for a
pass that is valid for one hour.
If a question is about something else, say kindly that you can only help with questions about the library."""

ASKS = (
    "When does {place} open on {day}?", "Is {place} open on {day} after six?", "Can I renew {thing} on {day}?",
    "How long may I keep {thing}?", "What do I pay if {thing} comes back {count} days late?",
    "Could you keep {thing} for me until {day}?", "May I take {thing} into {place}?",
)  # fmt: skip
ANSWERS = (
    "Yes, that is possible; please ask at the front desk.", "I am sorry, {place} is closed then.",
    "You may keep {thing} for up to four weeks and renew it twice.", "It opens at ten on {day}.",
    "That comes to {count} times twenty cents.", "Certainly, {thing} will wait for you until {day}.",
)  # fmt: skip
WORDS = {
    "place": ("the main hall", "the reading room", "the children's corner", "the study room", "the first floor"),
    "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "thing": ("a novel", "the film from last week", "a travel guide", "two games", "the city atlas", "a dictionary"),
    "count": ("three", "five", "nine", "twelve", "twenty"),
}


def shared_prefix_rows(base: Path, count: int, *, seed: int = 0) -> list:
    """`count` encoded rows: the instruction as system turn (or before the question, for bases without system turns),
    then a question and a short answer.
    """
    from luthier.bases.tokenizer import Tokenizer
    from luthier.chat.codec import ChatCodec
    from luthier.types import Row

    codec, draw = ChatCodec(Tokenizer.load(base)), random.Random(seed)
    rows = []
    for number in range(count):
        words = {name: draw.choice(choices) for name, choices in WORDS.items()}
        ask = " ".join(draw.sample(ASKS, draw.choice((1, 1, 2)))).format(**words)
        answer = " ".join(draw.sample(ANSWERS, draw.choice((1, 2)))).format(**words)
        turns = (("system", INSTRUCTION), ("user", ask), ("assistant", answer))
        messages = tuple({"role": role, "content": text} for role, text in turns)
        rows += codec.encode(Row(id=f"row-{number}", messages=messages))
    return rows


def run(base: Path, rows: list, args: argparse.Namespace, shared: bool) -> tuple[list[float], list[dict]]:
    """Seconds of every step but the first, and the logged steps."""
    from luthier.adapters.lora import apply_lora
    from luthier.config.adapter import AdapterSpec
    from luthier.config.train import TrainSpec
    from luthier.data.pack import make_batch, make_shared_batch
    from luthier.engine.loop import train
    from luthier.losses.sft import sft_loss_sum
    from luthier.models.load import load_model

    model = load_model(base, dtype=args.dtype)
    apply_lora(model, AdapterSpec(), seed=0)
    width = args.rows if shared else args.unshared_rows
    spec = TrainSpec(
        micro_batch_tokens=1 << 20, gradient_accumulation_steps=args.rows // width, learning_rate=2e-4,
        lr_scheduler="constant", warmup_ratio=0.0, seed=0,
    )  # fmt: skip
    packs = [list(range(first, first + width)) for first in range(0, len(rows), width)]
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        train(
            model, sft_loss_sum, spec, train_set=rows, dev_set=None, plan_epoch=lambda *_: packs,
            make_batch=make_shared_batch if shared else make_batch, run_dir=Path(folder),
            progress=lambda done, total, **_: ends.append(time.perf_counter()),
        )  # fmt: skip
        lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    return [b - a for a, b in itertools.pairwise(ends)], [json.loads(line) for line in lines]


def worst_difference(shared: list[dict], unshared: list[dict]) -> float:
    """Largest relative distance of loss or gradient norm. SystemExit beyond the tolerance, and without a gradient."""
    worst = 0.0
    for a, b in zip(shared, unshared, strict=True):
        if not b["grad_norm"] > 0:
            raise SystemExit(f"no gradient at step {b['step']}")
        worst = max([worst, *(abs(a[name] - b[name]) / b[name] for name in ("loss", "grad_norm"))])
    if worst > TOLERANCE:
        raise SystemExit(f"shared and unshared are {worst:.1e} apart, more than {TOLERANCE:.0e}")
    return worst


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=32, help="rows of one step: one pack when shared")
    parser.add_argument("--unshared-rows", type=int, default=8, help="rows of one unshared micro-batch")
    parser.add_argument("--steps", type=int, default=3, help="steps of one round; the first is warm-up")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    if args.steps < 2 or args.rows % args.unshared_rows:
        parser.error("--steps must be at least 2, and --rows a multiple of --unshared-rows")
    return args


def main() -> None:
    """Measures and prints a table."""
    args = parse()
    sys.path.insert(0, str(ROOT))
    import torch

    from luthier.bases.resolve import resolve_base
    from luthier.data.pack import make_shared_batch

    torch.set_num_threads(args.threads)
    base = resolve_base(args.base).folder
    rows = shared_prefix_rows(base, args.rows * args.steps)
    batch = make_shared_batch(rows[: args.rows])
    took_s: dict[bool, list[float]] = {True: [], False: []}
    worst = 0.0
    for _ in range(args.rounds):
        logs = {}
        for shared in (True, False):
            seconds, logs[shared] = run(base, rows, args, shared)
            took_s[shared] += seconds
        worst = max(worst, worst_difference(logs[True], logs[False]))
    speed = {shared: batch.num_represented / statistics.median(seconds) for shared, seconds in took_s.items()}
    lengths = [len(row.ids) for row in rows]
    print(
        f"{args.rows} rows of {min(lengths)} to {max(lengths)} tokens a step, {args.threads} threads, {args.dtype}: "
        f"{batch.num_represented} tokens, {len(batch.ids_T)} computed when shared\n"
        f"unshared {speed[False]:9.1f} tokens/s   {statistics.median(took_s[False]):7.2f} s a step\n"
        f"shared   {speed[True]:9.1f} tokens/s   {statistics.median(took_s[True]):7.2f} s a step\n"
        f"ratio    {speed[True] / speed[False]:9.2f}x; loss and gradient norm at most {worst:.1e} apart"
    )


if __name__ == "__main__":
    main()
