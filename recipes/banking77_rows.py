"""Writes train.csv and test.csv of the 10 banking77 intents with most training rows: banking77_rows.py SOURCE_FOLDER
OUT_FOLDER."""

import csv
import sys
from collections import Counter
from pathlib import Path

NUM_INTENTS, TRAIN_PER_INTENT, TEST_PER_INTENT = 10, 45, 20


def read(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV as dictionaries."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def main(source: Path, out: Path) -> None:
    """Keeps the first rows of each of the chosen intents."""
    train = read(source / "banking77_train.csv")
    intents = [name for name, _ in Counter(row["category"] for row in train).most_common(NUM_INTENTS)]
    out.mkdir(parents=True, exist_ok=True)
    for name, limit in (("train", TRAIN_PER_INTENT), ("test", TEST_PER_INTENT)):
        taken: Counter[str] = Counter()
        with open(out / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["text", "category"])
            writer.writeheader()
            for row in read(source / f"banking77_{name}.csv"):
                if row["category"] in intents and taken[row["category"]] < limit:
                    taken[row["category"]] += 1
                    writer.writerow(row)
    print(f"{', '.join(intents)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
