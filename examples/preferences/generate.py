"""Makes raw/replies.jsonl, raw/thumbs.jsonl and raw/test.jsonl: members of an invented tool library, and its answers.

    python examples/preferences/generate.py            # writes the files beside this one, always the same bytes

replies.jsonl: what clerks wrote in the past, one reply a question; some crisp, some curt, most of them rambling.
thumbs.jsonl: a question a line, with the two to four answers that members were shown and a thumb for each. Members like
an answer that says what is so and names the next step in few words; one thumb in fourteen is a slip.
test.jsonl: the same, judged without slips. Its rules are those of the other files (topics.txt), its questions and
the stories around them are not.
Standard library only.
"""

from __future__ import annotations

import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
SEED, SLIP = 5, 1 / 14
NUM_REPLIES, NUM_DEV_REPLIES, NUM_THUMBS, NUM_TEST = 640, 40, 900, 210
TEST_STORIES = 12  # the last ones, told in test questions alone
MAX_WORDS = 40  # of a crisp answer
TOOLS = """hammer drill|belt sander|circular saw|tile cutter|hedge trimmer|pressure washer|chainsaw|wallpaper steamer|
extension ladder|wheelbarrow|cement mixer|rotavator|leaf blower|heat gun|router table|jigsaw|nail gun|pipe wrench|
sack truck|floor polisher|log splitter|post digger|angle grinder|paint sprayer|mitre saw|torque wrench|lawn roller|
staple gun|stud finder|water pump|carpet cleaner|scaffold tower|plane|soldering station|bench vice|strimmer"""
KINS = "sister|brother|father|mother|uncle|aunt|neighbour|flatmate|daughter|son|cousin|grandfather|colleague|landlord"
PLACES = """the allotment|Tern Street|our boathouse|the old mill flat|Ropewalk Lane|the chapel hall|my workshop|
the houseboat|Lantern Hill|the school garden|Saltmarsh Close|the corner shop|Fish Quay|the scout hut"""
JOBS = """hanging two doors|laying oak boards in the hall|cutting back a laurel|tiling a tiny bathroom|building a rabbit
hutch|putting up shelves for records|mending the garden wall|stripping four layers of paint|digging a pond|making bunk
beds|fixing a leaking gutter|turning the loft into a study|levelling the lawn|restoring a rowing boat|fencing off the
hens|fitting a kitchen worktop|taking down a dead ash|clearing the cellar|repairing the pier steps|making a stage for a
play"""
OPENERS = """Hello!|Hi there,|Good morning.|Evening all,|Quick question.|Sorry to be a nuisance.|Me again.|Hiya|||||
Dear library,|To whoever is at the desk:|Hope you are well.|First time I write to you.|Long-time member here.|Urgent!"""
STORIES = """I am {job} at {place} and it takes far longer than I thought.|My {kin} talked me into {job}, of all
things.|We moved to {place} in {month} and nothing in the house is straight.|It has rained since {month} and I lost days
of work.|Between the twins and the night shifts I only get an hour here and there.|My {kin} swears that you know
everything.|I promised my {kin} to be done before {month}.|There are {n} of us sharing the work at {place}.|I had
planned on {job}, but the wood came {n} days late.|The first half of {job} went well, I must say.|I have read the page
on your site twice and am none the wiser.|Somebody at {place} gave me another answer last {month}.|We are a small group
that looks after {place}.|I hurt my wrist in {month}, so everything is slow.|My {kin} is visiting and wants to help
with {job}.|It is for {job}, nothing fancy.|I live on the third floor without a lift.|The bus from {place} runs only
{n} times a day.|I'm better with books than with my hands, to be honest.|You helped me so nicely in {month}.|A friend
from {place} is lending a hand until {month}.|I have {n} things on loan in my head and none on paper.|Last time I did
{job} I made a proper mess.|The landlord at {place} wants it finished in {n} weeks.|My {kin} did it another way and the
ceiling came down.|I've put off {job} for {n} years.|We start on {job} tomorrow at first light.|It's my {kin}'s
birthday present, in a way.|I found {n} old receipts but not the one I wanted.|The dog chewed whatever paper you gave
me.|Our {month} was all dust and sandwiches.|After {n} evenings at {place} I need a rest.|There was nobody at the desk
when I came by.|I rang {n} times and got the sea shanty.|All this because my {kin} wanted {job} done properly."""
CLOSERS = """Thanks!|Many thanks in advance.|Cheers,|Ta.|||||Yours, slightly worried|Thank you kindly.|Hope that makes
sense.|Please be quick, I'm at {place}.|No rush at all.|Looking forward to hearing from you.|Best from {place}"""
MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
LEADS = "||||Happy to help.|No trouble.|Good question.|Thanks for asking.|Hello.|Of course.|Sure.|Hi there."
CURT = """It's in the rules.|See the website.|Depends.|That is on the sign by the door.|Someone at the desk will know.|
We've answered this before.|Not my shift, sorry.|Read the welcome letter.|Should be fine.|Hard to say.|Check your page.|
As with all tools.|You'll see when you come.|The usual applies.|Ask again on Tuesday.|Yes and no."""
CHAT = """Oh, what a lovely thing to ask, and on such a blowy day too|Well now, where do I even begin with this one|You
are certainly not the first to wonder about that, far from it|I was just saying to the others over tea that somebody
would bring this up|It makes me think of my own first winter here, when I knew nothing at all|As you may or may not
know, we have been going for quite some time now|There are people who will tell you otherwise, and they mean well|I
could talk about this until the tide comes in, as my wife says|Now this is one of those matters with a bit of history
to it|Bear with me, because the kettle is on and my glasses are somewhere|Strictly speaking there are two ways of
looking at it, maybe three|My colleague would put this better, but she is up a ladder|We do get all sorts of questions
and I enjoy every one of them|Some days the phone never stops and then nobody rings for hours|It was all different
under the old committee, I can promise you|You sound like a person who takes care of things, which is rare"""
TAILS = """So there we are, more or less, as far as anyone can tell|Anyway, do come by whenever the mood takes you|Not
that I would lose any sleep over it, if I were you|But then again you will know best what suits you|I hope some of that
is of use, and if not, well, there is always next time|Let us see what the spring brings, that is what I always say|And
that, in a nutshell, is the long and the short of it|Oh dear, now the other phone is ringing, as it does|Mind how you go
on the wet steps by the gate|Perhaps we might all learn something from it one day"""


def words(pool: str) -> list[str]:
    """The entries of a pool; its line ends are spaces."""
    return [entry.strip() for entry in pool.replace("\n", " ").split("|")]


@dataclass(frozen=True)
class Topic:
    """A rule of the library."""

    questions: tuple[str, str, str]
    fact: str
    step: str
    aside: str


def topics() -> list[Topic]:
    """The lines of topics.txt."""
    lines = [line for line in (HERE / "topics.txt").read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    parts = [[part.strip() for part in line.split(" | ")] for line in lines]
    return [Topic((one[0], one[1], one[2]), one[3], one[4], one[5]) for one in parts]


class Writer:
    """Questions and answers from one stream of chances."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.asked: set[str] = set()
        self.stories = words(STORIES)[:-TEST_STORIES]

    def filled(self, text: str, slots: dict[str, str]) -> str:
        """The text with one draw for each of its slots; `slots` are those that are the same in the whole question."""
        draw = {name: self.rng.choice(words(pool)) for name, pool in (("job", JOBS), ("kin", KINS), ("month", MONTHS))}
        return text.format(**{**draw, "n": str(self.rng.randint(2, 19)), **slots})

    def question(self, topic: Topic) -> str:
        """One that was not asked before: the question itself among one to three sentences of other things."""
        rng = self.rng
        while True:
            slots = {"tool": rng.choice(words(TOOLS)), "place": rng.choice(words(PLACES))}
            stories = rng.sample(self.stories, rng.choice((2, 2, 3)))
            core = rng.choice(topic.questions)
            stories.insert(rng.randint(0, len(stories)), core)
            parts = [rng.choice(words(OPENERS)), *stories, rng.choice(words(CLOSERS))]
            text = " ".join(self.filled(part, slots) for part in parts if part)
            text = text.lower() if rng.random() < 0.1 else text
            if text not in self.asked:
                self.asked.add(text)
                return text

    def crisp(self, topic: Topic) -> str:
        """What is so and the next step, in few words."""
        lead = self.rng.choice(words(LEADS))
        return f"{lead} {topic.fact}. Next step: {topic.step}.".strip()

    def curt(self, topic: Topic) -> str:
        """Short, and it leaves the member standing."""
        if self.rng.random() < 0.4:
            return self.rng.choice(words(CURT))
        return f"{self.rng.choice(words(LEADS))} {topic.fact}.".strip()

    def rambling(self, topic: Topic) -> str:
        """All of it and more; now and then the next step is in there, too."""
        rng = self.rng
        first, second = rng.sample(words(CHAT), 2)
        told = rng.choice((f"{topic.fact}, and {topic.aside}", f"{topic.fact}. By the way, {topic.aside}"))
        hidden = f"You could always {topic.step} at some point" if rng.random() < 0.4 else rng.choice(words(TAILS))
        parts = [first, told, hidden, second]
        if rng.random() < 0.2:
            parts[2:] = [second, f"Next step: {topic.step}"]
        return ". ".join(parts) + "."

    def answer(self, topic: Topic, kind: str) -> str:
        """An answer of one kind."""
        return {"crisp": self.crisp, "curt": self.curt, "rambling": self.rambling}[kind](topic)


def is_liked(answer: str) -> bool:
    """The behaviour that members reward: the next step named, in few words."""
    return "Next step: " in answer and len(answer.split()) <= MAX_WORDS


def replies(writer: Writer, rules: list[Topic]) -> list[dict]:
    """Past replies; those of the dev split are all crisp, chosen by the head of the desk."""
    rows = []
    for number in range(NUM_REPLIES + NUM_DEV_REPLIES):
        topic, is_dev = rules[number % len(rules)], number >= NUM_REPLIES
        kind = "crisp" if is_dev else writer.rng.choices(("crisp", "curt", "rambling"), (25, 30, 45))[0]
        row = {"question": writer.question(topic), "answer": writer.answer(topic, kind)}
        rows.append({**row, "split": "dev" if is_dev else "train"})
    return rows


def judged(writer: Writer, rules: list[Topic], count: int, slip: float) -> list[dict]:
    """Questions with the answers that were shown, and their thumbs."""
    rows = []
    for number in range(count):
        topic = rules[number % len(rules)]
        others = writer.rng.choices(("curt", "rambling", "crisp"), (40, 45, 15), k=writer.rng.choice((1, 1, 1, 2, 3)))
        kinds = ["crisp" if not slip or writer.rng.random() < 0.95 else "curt", *others]
        if not slip and "crisp" in others:
            kinds = ["crisp", "rambling"]
        shown = list(dict.fromkeys(writer.answer(topic, kind) for kind in kinds))
        writer.rng.shuffle(shown)
        liked = [is_liked(answer) != (writer.rng.random() < slip) for answer in shown]
        answers = [{"text": text, "thumb": "up" if up else "down"} for text, up in zip(shown, liked, strict=True)]
        rows.append({"question": writer.question(topic), "answers": answers})
    return rows


def main(out: Path) -> None:
    """Writes the three files."""
    writer, rules = Writer(SEED), topics()
    files = {"replies.jsonl": replies(writer, rules), "thumbs.jsonl": judged(writer, rules, NUM_THUMBS, SLIP)}
    writer.stories = words(STORIES)[-TEST_STORIES:]
    files["test.jsonl"] = judged(writer, rules, NUM_TEST, 0.0)
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        (out / name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[2]) if sys.argv[1:2] == ["--out"] else HERE / "raw")
