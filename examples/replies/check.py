"""What the verdict's one figure is made of: voice, grounding and refusals of each arm, from the newest evaluation.

    python examples/replies/check.py [runs/replies]

Also prints how much of the rows' input is told twice (`near_duplicate_share`). Reads only, decides nothing.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from luthier.data.stored import read_rows
from luthier.evaluate.samples import ARMS, Sample, read_samples
from luthier.graders.grounded import ungrounded, unsaid
from luthier.text.shingles import shingle_sets
from luthier.types import Row

HERE = Path(__file__).resolve().parent
REFUSAL, UNKNOWN = "outside what we do", "do not have that to hand"


def masked(text: str) -> str:
    """Names (capitalised words inside a sentence), numbers and codes replaced by one letter each."""
    return re.sub(r"[A-Z]*\d+", "0", re.sub(r"(?<=[a-z,:] )[A-Z]\w+", "n", text))


def near_duplicate_share(texts: list[str]) -> float:
    """Share of the texts that have another one at Jaccard >= 0.5 over word 3-grams, masked."""
    hashed = shingle_sets([masked(text) for text in texts])
    sets = [set(hashed[i].tolist()) for i in range(len(hashed))]
    found: set[int] = set()
    for i, one in enumerate(sets):
        for j in range(i):
            if 3 * len(one & sets[j]) >= len(one) + len(sets[j]):  # Jaccard >= 1/2
                found |= {i, j}
    return len(found) / len(texts)


def inputs(name: str) -> list[str]:
    """All that stands before the last reply, for every row of raw/`name`.jsonl."""
    rows = map(json.loads, (HERE / "raw" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines())
    return ["\n".join(message["content"] for message in row["messages"][:-1]) for row in rows]


def figures(answered: list[tuple[Sample, Row]]) -> dict[str, float]:
    """The table's lines for one arm, as shares."""
    say = [(sample.answer, sample.scores, row, "\n".join(m["content"] for m in row.prompt)) for sample, row in answered]
    foreign = [one for one in say if REFUSAL in one[2].columns["key"]]
    missing = [one for one in say if UNKNOWN in one[2].columns["key"]]
    known = [one for one in say if one not in foreign and one not in missing]
    return {
        "may be sent as it is (all_of)": _share(scores["all_of"] for _, scores, _, _ in say),
        "in the voice, refuses when it should (regex)": _share(scores["regex"] for _, scores, _, _ in say),
        "grounded, with the key fact": _share(scores["grounded"] for _, scores, _, _ in say),
        "  claims nothing new": _share(not ungrounded(answer, prompt) for answer, _, _, prompt in say),
        f"  key fact said, fact on the table ({len(known)})": _share(
            not unsaid(answer, row.columns["key"]) for answer, _, row, _ in known
        ),
        f"  admits not to know, fact not there ({len(missing)})": _share(UNKNOWN in one[0] for one in missing),
        f"refuses foreign requests ({len(foreign)})": _share(REFUSAL in one[0] for one in foreign),
        f"refuses shop questions ({len(say) - len(foreign)})": _share(
            REFUSAL in one[0] for one in (*known, *missing)
        ),
    }  # fmt: skip


def _share(hits: Iterable[float]) -> float:
    values = [float(hit) for hit in hits]
    return sum(values) / len(values)


def main(runs: str = str(HERE / "../../runs/replies")) -> None:
    """Prints the table of the newest evaluation in `runs`."""
    newest = max(Path(runs).glob("evaluate-*/samples.jsonl"), key=lambda path: path.stat().st_mtime)
    samples = read_samples(newest)
    rows = {row.id: row for folder in Path(runs).glob("prepare-*") for row in read_rows(folder, "test")}
    table = [figures([(sample, rows[sample.id]) for sample in samples.of(arm).values()]) for arm in ARMS]
    print(f"{newest}\n{'':<46}" + "".join(f"{arm:>9}" for arm in ARMS))
    for name in table[0]:
        print(f"{name:<46}" + "".join(f"{column[name]:>9.1%}" for column in table))
    print(f"near-duplicate inputs: {near_duplicate_share([*inputs('train'), *inputs('test')]):.1%}")


if __name__ == "__main__":
    main(*sys.argv[1:])
