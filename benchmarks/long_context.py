"""A base trained beyond its window: rows of at least so many tokens through `luthier train`, with what the plan said.

    python benchmarks/long_context.py --tiny [--tokens 32768] [--steps 3] [--method lora]
    python benchmarks/long_context.py --method longlora --steps 1          (smollm2-135m, minutes a step)

Each row is a list of made-up records, one question about them and its answer: the head runs at the answer alone. The
context comes from model.rope_scaling (yarn). One line of figures: peak memory and time, planned and measured.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from luthier.bases.folder import read_json  # noqa: E402
from luthier.config.load import load_project  # noqa: E402
from luthier.jobs.opened import open_base  # noqa: E402
from luthier.jobs.train import train  # noqa: E402
from luthier.types import Message  # noqa: E402
from tests.tiny import make_tiny_base  # noqa: E402

SPARE = 512  # what a question, an answer and one line too many take


def long_row(count, tokens: int, seed: int) -> list[Message]:
    """A conversation of at least so many tokens; count: messages -> tokens."""
    rng, lines = random.Random(seed), []
    while True:
        lines += [f"record {len(lines) + i}: value {rng.randrange(10**6)}" for i in range(max(1, tokens // 400))]
        asked = rng.randrange(len(lines))
        text = "\n".join(lines) + f"\nWhat is the value of record {asked}?"
        talk = [Message(role="user", content=text), Message(role="assistant", content=lines[asked].split()[-1])]
        if count(talk) >= tokens:
            return talk


def write_project(folder: Path, base: str, given: argparse.Namespace) -> Path:
    """The project of the run; rows.jsonl beside it."""
    path, longest = folder / "luthier.yaml", given.tokens + SPARE + given.tokens // 16
    settings = {
        "model": {"base": base},
        "data": {"train": ["rows.jsonl"], "split": {"train": 1.0, "dev": 0.0, "test": 0.0}, "allow_no_dev": True},
        "adapter": {"method": given.method},
        "train": {
            "sequence_len": longest,
            "micro_batch_tokens": longest,
            "max_steps": given.steps,
            "num_epochs": given.steps,
            "num_threads": given.threads,
        },
    }
    (folder / "rows.jsonl").write_text("")
    path.write_text(json.dumps(settings))
    opened = open_base(load_project(path))
    own = read_json(opened.base.folder / "config.json")["max_position_embeddings"]
    settings["model"]["rope_scaling"] = {"rope_type": "yarn", "factor": math.ceil(longest / own)}
    settings["adapter"]["longlora_group"] = max(256, own)

    def count(talk: list[Message]) -> int:
        ids, _ = opened.codec.encode_answer(talk[:-1], talk[-1]["content"])
        return len(ids)

    rows = [long_row(count, given.tokens, seed) for seed in range(given.rows)]
    (folder / "rows.jsonl").write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in rows))
    path.write_text(json.dumps(settings))
    return path


def main() -> None:
    """Trains and prints the line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--tiny", action="store_true", help="a random base of 2 layers instead of smollm2-135m")
    parser.add_argument("--tokens", type=int, default=32_768)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--method", default="lora")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        base = str(make_tiny_base(folder / "base")) if given.tiny else "smollm2-135m"
        path = write_project(folder, base, given)
        train(load_project(path))
        (manifest,) = folder.glob("runs/train-*/manifest.json")
        facts = json.loads(manifest.read_text())["facts"]
    planned, wall_s = facts["planned"], facts["waste"]["wall_s"]
    gib = [one / 2**30 for one in (planned["peak_bytes"], facts["peak_bytes"])]
    name, tokens = "tiny" if given.tiny else base, facts["tokens"] // facts["steps"]
    print("| base | method | tokens a row | steps | peak GiB planned / measured | seconds planned / measured |")
    print("|---|---|---|---|---|---|")
    print(
        f"| {name} | {given.method} | {tokens:,} | {facts['steps']} "
        f"| {gib[0]:.2f} / {gib[1]:.2f} | {planned['total_s']:.0f} / {wall_s:.0f} |"
    )


if __name__ == "__main__":
    main()
