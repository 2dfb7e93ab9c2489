"""Writes pairs.jsonl, the short pairs of hh-rlhf's harmless test file, with what each is used for:
hh_harmless_rows.py SOURCE_FOLDER OUT_FOLDER.

Pairs with the same opening question stay together. `choosing` says how they are dealt while a setting is chosen,
`final` how they are dealt for the one run that is reported: there the sealed pairs are the dev split, and the rest is
trained on.
"""

import gzip
import hashlib
import json
import re
import sys
from collections import Counter
from pathlib import Path

MAX_CHARS = 560  # of a whole dialogue: about 150 tokens
DEV_PER_MILLE, SEALED_PER_MILLE = 220, 360


def part_of(dialogue: str) -> str:
    """train, dev or sealed, by a hash of the opening question."""
    opening = " ".join(re.findall(r"\w+", dialogue.split("\n\nAssistant:")[0].lower()))
    place = int(hashlib.sha256(opening.encode()).hexdigest(), 16) % 1000
    if place < SEALED_PER_MILLE:
        return "sealed"
    return "dev" if place < SEALED_PER_MILLE + DEV_PER_MILLE else "train"


def main(source: Path, out: Path) -> None:
    """Keeps the pairs of which both dialogues are short."""
    out.mkdir(parents=True, exist_ok=True)
    taken: Counter[str] = Counter()
    with (
        gzip.open(source / "hh_harmless.jsonl.gz", "rt", encoding="utf-8") as lines,
        open(out / "pairs.jsonl", "w", encoding="utf-8") as file,
    ):
        for line in lines:
            row = json.loads(line)
            if max(len(row["chosen"]), len(row["rejected"])) > MAX_CHARS:
                taken["too long"] += 1
                continue
            part = part_of(row["chosen"])
            taken[part] += 1
            uses = {"choosing": "test" if part == "sealed" else part, "final": "dev" if part == "sealed" else "train"}
            file.write(json.dumps(row | uses, ensure_ascii=False) + "\n")
    print(dict(taken))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
