"""Makes raw/train.jsonl and raw/test.jsonl: customers of an invented British firm, Tarn & Wick, and its replies.

    python examples/replies/generate.py            # writes both files beside this one, always the same bytes

A row is a conversation of one to three turns. Its first turn carries the facts that the clerk has before him, the last
reply is what is graded: `key` holds what it must say. Facts (facts.txt), foreign subjects (off_topic.txt) and the
customers' stories of the test file occur nowhere in the training file, and figures are drawn anew for every row: what
can be learnt is to read the facts and to write in the voice, not the facts. Standard library only.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
SEED = 11
TRAIN_ROWS, TEST_ROWS = 12, 11  # of each fact
TRAIN_REFUSALS, TEST_REFUSALS = 3, 4  # of each foreign subject
POOLS = {
    "lamp": ["Fell lamp", "Beck lamp", "Ghyll lamp", "Rigg lantern", "Swale lamp", "Dale lantern"],
    "stove": ["Cairn stove", "Scree stove", "Birk stove", "Thwaite stove"],
    "kettle": ["Force kettle", "Pike kettle", "Hause kettle", "Spout kettle"],
    "carrier": ["Northline", "Pennine Post", "Gale Couriers", "Mossop Freight"],
}
MONTHS = [
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
]  # fmt: skip
NAMES = [
    "Marta", "Idris", "Ann", "Colm", "Priya", "Tobias", "Hana", "Geoff", "Ruth", "Osman", "Elin", "Frank", "Bronwen",
    "Yusuf", "Clare", "Dai", "Nadia", "Piet", "Rosa", "Sunil", "Agnes", "Kwame", "Lena", "Murdo", "Ines", "Rhys",
    "Tess", "Omar", "Judith", "Callum", "Wanda", "Hugh", "Farah", "Moira", "Stan", "Leila", "Edwin", "Saoirse", "Gita",
    "Noel", "Ivor", "Mina", "Bettina", "Hamish", "Zoe", "Arthur", "Kezia", "Lorna", "Emeka", "Una",
]  # fmt: skip
CALM, CROSS, WORRIED, CHATTY, CURT = TEMPERS = ("calm", "cross", "worried", "chatty", "curt")
OPENERS = {
    CALM: ["Good morning.", "Hello there.", "Dear Tarn & Wick,", "A question, if I may.", "Good evening.", "Hi,", ""],
    CROSS: [
        "This is not good enough.", "I am losing patience with you.", "Right, I have had it.", "Honestly!",
        "Not again.",        "I've written before and heard NOTHING.",
        "What sort of shop is this?", "I want a straight answer for once.",
    ],
    WORRIED: [
        "I'm a bit anxious about this.", "Sorry to bother you.", "I do hope you can help.", "I hardly slept over it.",
        "Please tell me I haven't made a mess of things.", "I'm not sure whom to ask.", "Oh dear.",
    ],
    CHATTY: [
        "Hello you lot!", "Greetings from the back of beyond.", "Me again, your most faithful nuisance.",
        "What a week it has been.", "Lovely to have found you.", "My neighbour swears by you, so here I am.",
    ],
    CURT: ["", "", "hi", "quick one", "q:", "hey"],
}  # fmt: skip
CLOSERS = {
    CALM: ["Many thanks.", "Thank you in advance.", "Best wishes.", "", "", "With thanks for your time."],
    CROSS: [
        "I expect an answer today.", "Sort it out.", "I shall tell everybody I know.", "Enough is enough!", "",
        "And don't fob me off.", "I want this in writing.",
    ],
    WORRIED: ["I'd be so grateful.", "I don't want to do it wrong.", "Please be honest.", "", "I can't stop thinking."],
    CHATTY: ["Right, the kettle calls!", "Give the workshop cat a stroke.", "Anyway, I go on.", "Cheerio!", ""],
    CURT: ["", "", "thx", "ta", "asap"],
}  # fmt: skip
STORIES = [
    "We moved into {place} at the start of {month} and the place is still full of boxes.",
    "My {kin} gave it to me and I'd rather look after it.",
    "The power goes off in {place} whenever the wind gets up.",
    "I look after {place} for my {kin} and have to plan ahead.",
    "My {kin} is coming to stay in {month} and I want it all in order.",
    "There is no mains out at {place}, so we depend on it.",
    "I read your leaflet twice and couldn't find it.",
    "The {kin} says one thing and the man at the market says another.",
    "We use it every evening at {place}, with the windows shut against the rain.",
    "It's for {place}, which has thick walls and damp corners.",
    "I am eighty-one and my {kin} types this for me.",
    "Last {month} we had a flood here and I lost my papers.",
    "Since my {kin} retired we spend most nights at {place}.",
    "I paint in the shed and the light matters to me.",
    "The children from {place} put on a play and asked me to arrange it.",
    "I tried to ring, but the line from {place} is dreadful.",
    "Our old one came with {place} and nobody knows its age.",
    "I had one of yours as a student and have never forgotten the smell.",
    "My {kin} thinks I fuss, and perhaps I do.",
    "It has to be settled before {month}, when we shut {place} up.",
    "I'm writing from {place} with one bar of signal.",
    "A friend of my {kin} bought the same and had no bother at all.",
    "We are doing up {place} by ourselves, a wall at a time.",
    "The dog and I walk past your window every {month}.",
]  # fmt: skip
TEST_STORIES = [
    "Forgive the handwriting, my {kin} scanned this for me in the library.",
    "We only come up to {place} when the school is shut.",
    "It hangs where my {kin} used to sit and mend nets.",
    "I can't get to town before {month} because of my hip.",
    "Nobody at {place} remembers who bought it.",
    "My {kin} has a wager with me about this.",
    "Half the lane lost its lights in {month}, and we were the only cosy ones.",
    "I teach evening classes at {place} and people keep asking me.",
    "There was a leaflet in the box, but the mice at {place} got to it first.",
    "It was my {kin}'s, and I never threw anything of theirs away.",
]  # fmt: skip
PLACES = [
    "the lock cottage", "our narrowboat", "the bothy", "an old chapel", "the allotment hut", "a farmhouse", "the pub",
    "the scout hut", "my studio", "the lighthouse flat", "a caravan", "the tea room", "the village hall", "the attic",
]  # fmt: skip
KIN = ["sister", "uncle", "daughter", "grandfather", "neighbour", "wife", "husband", "aunt", "son", "landlady"]
FOLLOW_UPS = [
    "Thanks. One more thing.", "All right, noted.", "Good. While you are there:", "Fine.", "That is clear, thank you.",
    "OK, and something else.", "Hm. I see.", "Very kind.", "Right. Next question.", "That helps.",
]  # fmt: skip
VAGUE = [
    "I need some help with something I have from you.", "Could somebody there answer a question?",
    "Is this the right address for questions?",
    "There is something I'd like to know.", "Have you got a minute for me?", "Am I speaking to a person?",
]  # fmt: skip
THANKS = {
    CALM: ["thank you for writing", "thank you for asking"],
    CROSS: ["we are sorry for the trouble", "we are sorry about this"],
    WORRIED: ["please do not worry", "we are glad to help with this"],
    CHATTY: ["it is good to hear from you", "thank you for telling us"],
    CURT: ["thank you for asking", "thank you for writing"],
}
REFUSALS = [
    "{subject} is outside what we do.",
    "We cannot advise on {subject}, as it is outside what we do.",
    "Questions of {subject} are outside what we do.",
]
REFUSAL_STEPS = [
    "please ask us about lamps, stoves, kettles or an order.",
    "please tell us if a lamp, stove or kettle needs our help.",
    "please write again if an order needs our help.",
]
UNKNOWN = ["We do not have that to hand.", "Just now we do not have that to hand."]
UNKNOWN_STEPS = ["we will ask the workshop and write again.", "we will look it up and write to you."]
ASKS_MORE = ["please tell us what you would like to know.", "please tell us more, and we will look it up."]


@dataclass
class Fact:
    """One block of facts.txt: the line itself with slots, how it is asked for, answered, and what an answer holds."""

    name: str
    values: dict[str, list[str]] = field(default_factory=dict)
    text: str = ""
    asks: list[str] = field(default_factory=list)
    replies: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Thread:
    """A conversation in the making: the facts on the table, the turns so far and what the last reply must say."""

    facts: list[str]
    turns: list[tuple[str, str]]  # (the customer, the reply)
    key: list[str]


def read_facts() -> list[Fact]:
    """All of facts.txt, in order."""
    facts: list[Fact] = []
    for line in (HERE / "facts.txt").read_text(encoding="utf-8").splitlines():
        kind, _, rest = line.partition(": ")
        if line.startswith("# "):
            facts.append(Fact(line[2:]))
        elif kind == "values":
            pairs = [part.split(" = ") for part in rest.split(" ; ")]
            facts[-1].values = {name: choices.split(" | ") for name, choices in pairs}
        elif kind == "fact":
            facts[-1].text = rest
        elif kind == "step":
            facts[-1].steps = rest.split(" || ")
        elif line:
            {"ask": facts[-1].asks, "reply": facts[-1].replies, "key": facts[-1].keys}[kind].append(rest)
    return facts


def read_subjects() -> list[tuple[str, list[str]]]:
    """All of off_topic.txt: (subject, ways to ask)."""
    lines = (HERE / "off_topic.txt").read_text(encoding="utf-8").splitlines()[1:]
    return [(subject, asks) for subject, *asks in (line.split(" | ") for line in lines)]


class Clerk:
    """Draws rows for one file; `facts` and `stories` are those that the file may show."""

    def __init__(self, facts: list[Fact], stories: list[str], rng: random.Random) -> None:
        self.facts, self.stories, self.rng = facts, stories, rng

    def draw(self, fact: Fact, other: dict[str, str] | None = None) -> dict[str, str]:
        """A value for every slot; `other`: values of a twin, none of which may come back where there is a choice."""
        rng, slots = self.rng, {}
        day = rng.randrange(20)
        month = rng.randrange(11)
        for name, choices in fact.values.items():
            pool = POOLS.get(choices[0], choices)
            if choices[0] in ("date", "later"):
                pool = [f"{1 + day + (6 if choices[0] == 'later' else 0)} {MONTHS[month]}"]
            elif choices[0] == "order":
                pool = [str(rng.randrange(20_000, 99_999))]
            elif choices[0] == "parcel":
                pool = [f"{rng.choice(['NL', 'PP', 'GC', 'MF'])}{rng.randrange(1000, 9999)}"]
            slots[name] = rng.choice([value for value in pool if value != (other or {}).get(name)] or pool)
        return slots

    def reply(self, name: str, temper: str, core: str, step: str) -> str:
        """A letter in the voice."""
        greeting = f"Hello {name}" if name else "Hello"
        core = core[0].upper() + core[1:]
        return f"{greeting}, {self.rng.choice(THANKS[temper])}. {core} Next, {step} Kind regards, Tarn & Wick"

    def says(self, temper: str, ask: str, *, follows: bool) -> str:
        """The customer's words around a question."""
        rng = self.rng
        opener = rng.choice(FOLLOW_UPS if follows else OPENERS[temper])
        num_stories = {CURT: 0, CHATTY: 2}.get(temper, 1)
        stories = [
            story.format(place=rng.choice(PLACES), kin=rng.choice(KIN), month=rng.choice(MONTHS))
            for story in rng.sample(self.stories, max(num_stories - follows, 0))
        ]
        middle = [*stories, ask] if rng.random() < 0.6 else [ask, *stories]
        text = " ".join(part for part in (opener, *middle, rng.choice(CLOSERS[temper])) if part)
        if temper == CURT and rng.random() < 0.6:
            text = text.lower().rstrip(".?")
        if temper == CROSS and rng.random() < 0.3:
            text = text.replace("?", "?!", 1)
        return text

    def answered(self, fact: Fact, name: str, temper: str, *, follows: bool, known: bool = True) -> Thread:
        """One question about a fact and its reply. known: whether the fact lies on the table."""
        rng, slots = self.rng, self.draw(fact)
        short = temper == CURT and rng.random() < 0.7
        ask = fact.asks[-1] if short else rng.choice(fact.asks[:-1])
        lines = [fact.text.format(**slots)] if known else []
        if any(f"{{{slot}}}" in ask for slot in ("p", "o")) and (not known or rng.random() < 0.5):
            lines.append(fact.text.format(**self.draw(fact, slots)))  # the same about another product or order
        turn = self.says(temper, ask.format(**slots), follows=follows)
        if not known:
            reply = self.reply(name, temper, rng.choice(UNKNOWN), rng.choice(UNKNOWN_STEPS))
            return Thread(lines, [(turn, reply)], ["do not have that to hand"])
        core, step = rng.choice(fact.replies).format(**slots), rng.choice(fact.steps).format(**slots)
        return Thread(lines, [(turn, self.reply(name, temper, core, step))], [key.format(**slots) for key in fact.keys])

    def refused(self, subject: str, asks: list[str], name: str, temper: str, *, follows: bool) -> Thread:
        """One foreign request and its refusal."""
        ask = asks[-1] if temper == CURT else self.rng.choice(asks[:-1])
        core = self.rng.choice(REFUSALS).format(subject=subject)
        reply = self.reply(name, temper, core, self.rng.choice(REFUSAL_STEPS))
        return Thread([], [(self.says(temper, ask, follows=follows), reply)], ["outside what we do"])

    def before(self, about: str, name: str, temper: str, num: int) -> tuple[list[Thread], set[str]]:
        """The `num` turns before the last (another fact asked for, or a vague start, answered by a question), and the
        facts that may not be drawn again."""
        threads, used = [], {about}
        for place in range(num):
            if place == 0 and self.rng.random() < 0.4:
                reply = self.reply(name, temper, "we will gladly look.", self.rng.choice(ASKS_MORE))
                threads.append(Thread([], [(self.rng.choice(VAGUE), reply)], []))
                continue
            fact = self.rng.choice([one for one in self.facts if one.name not in used])
            used.add(fact.name)
            threads.append(self.answered(fact, name, temper, follows=place > 0))
        return threads, used

    def row(self, about: str, last: Callable[..., Thread]) -> dict:
        """A whole row. last: (name, temper, follows=) -> the last turn."""
        rng = self.rng
        name, temper = "" if rng.random() < 0.08 else rng.choice(NAMES), rng.choice(TEMPERS)
        num_turns = rng.choices([1, 2, 3], [0.6, 0.3, 0.1])[0]
        threads, used = self.before(about, name, temper, num_turns - 1)
        threads.append(last(name, temper, follows=num_turns > 1))
        lines = [line for thread in threads for line in thread.facts]
        while len(lines) < 2:
            fact = rng.choice([one for one in self.facts if one.name not in used])
            used.add(fact.name)
            lines.append(fact.text.format(**self.draw(fact)))
        rng.shuffle(lines)
        table = "\n".join([f"Customer: {name or 'name not given'}", *(f"- {line}" for line in lines)])
        messages = []
        for place, (turn, reply) in enumerate(pair for thread in threads for pair in thread.turns):
            messages += [
                {"role": "user", "content": turn if place else f"{table}\n\n{turn}"},
                {"role": "assistant", "content": reply},
            ]
        return {"messages": messages, "about": about, "temper": temper, "key": threads[-1].key}


def make_rows(
    facts: list[Fact],
    subjects: list[tuple[str, list[str]]],
    stories: list[str],
    *,
    each: int,
    refusals: int,
    seed: int,
) -> list[dict]:
    """`each` rows of every fact (about one in nine without the fact on the table), `refusals` of every subject."""
    rng = random.Random(seed)
    clerk = Clerk(facts, stories, rng)
    rows = [
        clerk.row(fact.name, partial(clerk.answered, fact, known=rng.random() > 0.11))
        for fact in facts
        for _ in range(each)
    ]
    rows += [
        clerk.row(f"off topic: {subject}", partial(clerk.refused, subject, asks))
        for subject, asks in subjects
        for _ in range(refusals)
    ]
    rng.shuffle(rows)
    return rows


def main(folder: Path = HERE / "raw") -> None:
    """Writes both files into `folder`."""
    facts, subjects = read_facts(), read_subjects()
    folder.mkdir(parents=True, exist_ok=True)
    for name, is_test, each, refusals in (
        ("train", False, TRAIN_ROWS, TRAIN_REFUSALS),
        ("test", True, TEST_ROWS, TEST_REFUSALS),
    ):
        rows = make_rows(
            [fact for place, fact in enumerate(facts) if (place % 4 == 2) == is_test],
            [subject for place, subject in enumerate(subjects) if (place % 4 == 2) == is_test],
            TEST_STORIES if is_test else STORIES, each=each, refusals=refusals, seed=SEED + is_test,
        )  # fmt: skip
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
        print(f"{folder / name}.jsonl: {len(rows)} rows")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
