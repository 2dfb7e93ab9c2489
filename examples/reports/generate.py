"""Writes corpus.jsonl, train.jsonl and test.jsonl from handbook.txt, wording.txt and general.md, which are written by
hand. Seeded: the same bytes every time (`python generate.py --out FOLDER` to compare).

corpus.jsonl: documents of one small office, {"kind", "split", "text"}. Its handbook says what each of 36 codes means,
three limits and a remedy; cases, exam papers and memoranda use them. train.jsonl, test.jsonl: an inspector's note and
the report that it becomes by the handbook's rules. Nine codes are in the corpus and in test.jsonl, never in
train.jsonl: what the tune says of them it has from the corpus. No asset of one file is in another.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SEED = 20260311
CLASSES = ("watch", "planned", "urgent", "stop")
UNTAUGHT = ("SHG", "OIL", "CPL", "SIL", "CAV", "FLT", "GLS", "SCR", "BRG")
"""Codes that only the corpus explains."""
NUM_ROWS = {"train": 708, "taught": 140, "untaught": 70}
CASES_OF_CODE, NUM_EXAMS, NUM_MEMOS = 9, 30, 60
HELD_OUT_SHARES = {"dev": 0.08, "test": 0.12}
"""Of the cases, exam papers and memoranda; handbook, cards and tables are all for training."""


@dataclass(frozen=True)
class Code:
    """A defect code. limits: as written; more: whether more is worse; said: how, why, harm, mix, tale -> sentences."""

    code: str
    chapter: str
    part: str
    defect: str
    unit: str
    more: bool
    limits: tuple[str, ...]
    remedy: str
    said: dict[str, list[str]]

    @property
    def words(self) -> dict[str, str]:
        """What the wordings call its parts."""
        first, second, third = self.limits
        return {
            "code": self.code, "part": self.part, "defect": self.defect, "unit": self.unit, "remedy": self.remedy,
            "l1": first, "l2": second, "l3": third, "dir": "more is worse" if self.more else "less is worse",
            "a_part": ("an " if self.part[0] in "aeiou" else "a ") + self.part,
        }  # fmt: skip


def read_handbook(path: Path) -> list[Code]:
    """The blocks of handbook.txt."""
    codes = []
    for block in path.read_text(encoding="utf-8").split("\n\n")[1:]:
        head, *lines = block.strip().split("\n")
        code, chapter, part, defect, unit, worse, limits, remedy = head.split(" | ")
        said: dict[str, list[str]] = {}
        for line in lines:
            name, sentence = line.split(": ", 1)
            said.setdefault(name, []).append(sentence)
        codes.append(Code(code, chapter, part, defect, unit, worse == "up", tuple(limits.split()), remedy, said))
    return codes


def read_wording(path: Path) -> dict[str, list[str]]:
    """Section -> its lines; one line with commas is a list of words."""
    sections: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            lines = sections.setdefault(line.strip("[]"), [])
        else:
            lines.append(line)
    return {name: found[0].split(", ") if len(found) == 1 else found for name, found in sections.items()}


def class_of(code: Code, reading: str) -> str:
    """The handbook's rule: a reading on a limit belongs to the worse class."""
    reached = [float(reading) >= float(at) if code.more else float(reading) <= float(at) for at in code.limits]
    return CLASSES[sum(reached)]


def action_of(code: Code, class_name: str) -> str:
    """What is ordered."""
    return {
        "watch": "measure again in 90 days",
        "planned": f"{code.remedy} within 60 days",
        "urgent": f"{code.remedy} within 7 days",
        "stop": f"take out of service and {code.remedy}",
    }[class_name]


def draw_reading(rng: random.Random, code: Code, class_name: str) -> str:
    """A reading of that class, with the decimals and steps of the limits."""
    scale = 10 if "." in "".join(code.limits) else 1
    first, second, third = (round(float(limit) * scale) for limit in code.limits)
    step = 50 if first >= 1000 else 1
    if code.more:
        spans = [(max(1, round(0.3 * first)), first - 1), (first, second - 1), (second, third - 1), (third, 2 * third)]
    else:
        spans = [(first + 1, 2 * first - third), (second + 1, first), (third + 1, second), (round(0.4 * third), third)]
    low, high = spans[CLASSES.index(class_name)]
    value = rng.randrange(-(-low // step), high // step + 1) * step
    return f"{value / scale:.1f}" if scale > 1 else str(value)


class Office:
    """The facts and the words, and one source of chance."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.codes = read_handbook(HERE / "handbook.txt")
        self.wording = read_wording(HERE / "wording.txt")
        self.kinds = {line.split(": ")[0]: line.split(": ")[1].split(", ") for line in self.wording["kinds"]}
        self.units = {line.split(": ")[0]: line.split(": ")[1].split(", ") for line in self.wording["units"]}
        self.places = {}
        for line in self.wording["places"]:
            kind, places = line.split(": ")
            self.places[kind] = [tuple(place.split(" = ")) for place in places.split(", ")]

    def pick(self, section: str) -> str:
        """One line of a section."""
        return self.rng.choice(self.wording[section])

    def site(self, names: str, code: Code) -> tuple[str, str, str]:
        """An asset that can have such a defect, a place of it as notes write it, and in full."""
        kind = self.rng.choice(self.kinds[code.chapter])
        short, full = self.rng.choice(self.places[kind])
        return f"{self.pick('names ' + names)} {kind}", short, full


def note_row(office: Office, code: Code, class_name: str, names: str) -> dict[str, Any]:
    """One note with its report."""
    rng = office.rng
    asset, short, place = office.site(names, code)
    reading = draw_reading(rng, code, class_name)
    report = "\n".join(
        [
            f"Asset: {asset}, {place}",
            f"Defect: {code.part}, {code.defect}",
            f"Limits: {', '.join(code.limits)} {code.unit}",
            f"Class: {class_name}",
            f"Action: {action_of(code, class_name)}",
            f"Reading: {reading} {code.unit}",
        ]
    )
    unit = rng.choice([*office.units[code.unit], ""])
    old = draw_reading(rng, code, CLASSES[rng.randrange(CLASSES.index(class_name) + 1)])
    entry = office.pick("rdg").format(code=code.code, x=reading, u=unit, old=old).strip()
    entry = entry.replace("  ", " ").replace(" ,", ",").replace(" ;", ";")
    header = [f"{rng.randrange(1, 29)}{rng.choice('/.-')}{rng.randrange(1, 13)}"] if rng.random() < 0.5 else []
    header += [office.pick("initials")] if rng.random() < 0.5 else []
    header += [office.pick("weather")] if rng.random() < 0.6 else []
    rng.shuffle(header)
    where = f"{rng.choice([asset, asset, asset.lower(), asset.upper()])}{rng.choice([', ', ' ', ': ', ' - '])}{short}"
    rest = rng.sample(office.wording["remarks"], rng.choice((2, 3, 3, 4)))
    rest.insert(rng.randrange(len(rest) + 1), entry)
    first = [where, *header] if rng.random() < 0.4 else [*header, where]
    note = rng.choice(["; ", ". ", " / ", ", ", " - ", "\n"]).join([*first, *rest])
    return {"note": note, "report": report, "asset": asset, "code": code.code, "class": class_name}


def note_rows(office: Office, codes: list[Code], count: int, names: str) -> list[dict[str, Any]]:
    """`count` notes over all codes and classes alike, in random order."""
    rows = [note_row(office, codes[i % len(codes)], CLASSES[i // len(codes) % 4], names) for i in range(count)]
    office.rng.shuffle(rows)
    return rows


def say(line: str, words: dict[str, Any]) -> str:
    """A wording filled in, beginning with a capital."""
    text = line.format(**words)
    return text[0].upper() + text[1:]


def handbook_section(office: Office, code: Code) -> str:
    """The rule itself, with all that is written about it."""
    words, said = code.words, code.said
    first, second, third = code.limits
    fall = "from" if code.more else "down to"
    text = [
        f"## {code.code}: {code.part}, {code.defect}",
        f"Chapter {code.chapter}. {code.code} is entered for {code.defect} at the {code.part}.",
        " ".join(said["how"]),
        f"The reading is given in {code.unit}; {words['dir']}. Planned {fall} {first}, urgent {fall} {second}, stop "
        f"{fall} {third} {code.unit}.",
        f"The remedy is to {code.remedy}. " + " ".join(said["why"]),
        " ".join([*said["harm"], *said["mix"]]),
        "\n".join(f"- {name}: {action_of(code, name)}" for name in CLASSES),
    ]
    return "\n\n".join(text)


def asked(office: Office, code: Code, what: str) -> str:
    """A question of the course with its answer. what: '', '-limits' or '-class'."""
    words, name = code.words, office.rng.choice(CLASSES)
    words |= {"x": draw_reading(office.rng, code, name), "class": name, "Class": name.capitalize()}
    words["action"] = action_of(code, name)
    return f"{say(office.pick('ask' + what), words)}\n{say(office.pick('answer' + what), words)}"


def case(office: Office, code: Code, class_name: str) -> str:
    """What happened once, somewhere, with the rule in use."""
    rng, words, said = office.rng, code.words, code.said
    asset, _, place = office.site("corpus", code)
    words |= {
        "asset": asset, "place": place, "who": office.pick("people"), "season": office.pick("seasons"),
        "weather_day": office.pick("days"), "year": rng.randrange(1961, 2024), "num": rng.randrange(11, 900),
        "x": draw_reading(rng, code, class_name), "class": class_name,
        "old": f"{draw_reading(rng, code, class_name)} {code.unit}",
    }  # fmt: skip
    way = f"{class_name}-{'up' if code.more else 'down'}"
    parts = {name: [say(office.pick(f"case-{name}"), words)] for name in ("open", "find")}
    parts |= {"rule": [say(office.pick(f"rule-{way}"), words)], "act": [say(office.pick(f"act-{class_name}"), words)]}
    parts |= {name: [rng.choice(said[name])] for name in ("how", "why", "tale")}
    parts["aside"] = [rng.choice([*said["harm"], *said["mix"]])]
    parts["middle"] = rng.sample(office.wording["middle"], rng.choice((1, 1, 2)))
    parts["close"] = [office.pick("close")]
    order = rng.choice(
        [
            "open tale / how find rule / act middle close",
            "open middle / find rule act / why tale / close",
            "open how find / middle rule / act aside close",
            "tale / open find / rule act / why middle",
            "open find rule / how / act / tale close",
            "middle open / tale why / find rule act / close",
        ]
    )
    text = "\n\n".join(" ".join(s for name in part.split() for s in parts[name]) for part in order.split(" / "))
    title = say(office.pick("case-title"), words)
    return f"{rng.choice(['# ', '### ', '', '** '])}{title}\n\n{text}"


def memo(office: Office) -> str:
    """A note of the office about two codes."""
    one, other = office.rng.sample(office.codes, 2)
    words: dict[str, Any] = {**one.words, **{f"{name}2": value for name, value in other.words.items()}}
    words |= {"season": office.pick("seasons"), "year": office.rng.randrange(1971, 2024)}
    words |= {name: office.rng.randrange(3, 40) for name in ("n1", "n2", "num")}
    texts = [say(line, words) for line in office.rng.sample(office.wording["memo"], 2)]
    return "\n\n".join([say(office.pick("memo-open"), words), *texts, office.pick("memo-close")])


def tables(office: Office) -> Iterator[str]:
    """The handbook's overviews."""
    for chapter in office.kinds:
        lines = [
            f"# Codes of the chapter {chapter}",
            "",
            "| code | part | defect | limits | remedy |",
            "|---|---|---|---|---|",
        ]
        for code in office.codes:
            if code.chapter == chapter:
                limits = f"{', '.join(code.limits)} {code.unit}"
                lines.append(f"| {code.code} | {code.part} | {code.defect} | {limits} | {code.remedy} |")
        yield "\n".join(lines)
    for title, key in (("Index of codes", "code"), ("Index of parts", "part"), ("Index of remedies", "remedy")):
        ordered = sorted(office.codes, key=lambda code: getattr(code, key))
        for start in range(0, len(ordered), 12):
            block = [f"{getattr(c, key)}: {c.code}, {c.part}, {c.defect}" for c in ordered[start : start + 12]]
            yield "\n".join([f"{title}, page {start // 12 + 1}", "", *block])


def documents(office: Office) -> Iterator[tuple[str, str]]:
    """(kind, text) of every document."""
    rng = office.rng
    sections = (HERE / "general.md").read_text(encoding="utf-8").strip().split("\n\n")
    yield from (("general", section) for section in sections)
    yield from (("table", table) for table in tables(office))
    for code in office.codes:
        yield "section", handbook_section(office, code)
        yield from (("card", say(line, code.words)) for line in office.wording["card"])
        yield "course", "\n\n".join(asked(office, code, what) for what in ("", "-limits", "-class", "-class"))
        yield from (("case", case(office, code, CLASSES[index % 4])) for index in range(CASES_OF_CODE))
    for index in range(NUM_EXAMS):
        codes = rng.sample(office.codes, 6)
        items = [asked(office, code, rng.choice(("", "-limits", "-class"))) for code in codes]
        numbered = "\n\n".join(f"{number}. {item}" for number, item in enumerate(items, 1))
        yield "exam", f"Examination paper {index + 1}\n\n{numbered}"
    yield from (("memo", memo(office)) for _ in range(NUM_MEMOS))


def corpus(office: Office) -> list[dict[str, Any]]:
    """The documents in random order, each with its split."""
    found = []
    for kind, text in documents(office):
        split = "train"
        if kind in ("case", "exam", "memo"):
            point = office.rng.random()
            dev, test = HELD_OUT_SHARES.values()
            split = "dev" if point < dev else "test" if point < dev + test else "train"
        found.append({"kind": kind, "split": split, "text": text})
    office.rng.shuffle(found)
    return found


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(lines, encoding="utf-8", newline="\n")


def main() -> None:
    """Writes the three files."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=HERE)
    out = parser.parse_args().out
    office = Office(SEED)
    taught = [code for code in office.codes if code.code not in UNTAUGHT]
    untaught = [code for code in office.codes if code.code in UNTAUGHT]
    write(out / "corpus.jsonl", corpus(office))
    write(out / "train.jsonl", note_rows(office, taught, NUM_ROWS["train"], "train"))
    test = note_rows(office, taught, NUM_ROWS["taught"], "test")
    test += note_rows(office, untaught, NUM_ROWS["untaught"], "test")
    office.rng.shuffle(test)
    write(out / "test.jsonl", test)


if __name__ == "__main__":
    main()
