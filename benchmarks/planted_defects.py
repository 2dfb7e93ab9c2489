"""Defects planted on purpose, by code that shares nothing with the detectors that `benchmarks/data_defects.py` judges.

What: personal data with valid check digits (computed here, by hand), secrets in the documented forms, and lookalikes
that are neither (order numbers, prices, dates, versions, digests); documents with near-copies whose Jaccard similarity
is uniform in [0.9, 1); texts made of a few thousand words where no data set is given.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Make = Callable[[random.Random], str]


@dataclass(frozen=True)
class Planted:
    """text[start:end] is of this kind; kind "" is a text without any."""

    text: str
    kind: str = ""
    start: int = 0
    end: int = 0


def digits(rng: random.Random, number: int) -> str:
    return "".join(rng.choices(string.digits, k=number))


def luhn_digit(number: str) -> str:
    total = 0
    for place, digit in enumerate(reversed(number)):
        value = int(digit) * (2 if place % 2 == 0 else 1)
        total += value - 9 if value > 9 else value
    return str(-total % 10)


def card(rng: random.Random) -> str:
    prefix, size = rng.choice([("4", 16), ("51", 16), ("55", 16), ("2221", 16), ("37", 15), ("34", 15), ("6011", 16)])
    body = prefix + digits(rng, size - len(prefix) - 1)
    number = body + luhn_digit(body)
    if size == 15:
        return rng.choice([number, f"{number[:4]} {number[4:10]} {number[10:]}"])
    parts = [number[i : i + 4] for i in range(0, 16, 4)]
    return rng.choice(["", " ", "-"]).join(parts)


IBAN_FORMS = {"DE": "d" * 18, "GB": "AAAA" + "d" * 14, "FR": "d" * 23, "NL": "AAAA" + "d" * 10, "ES": "d" * 20,
              "AT": "d" * 16, "CH": "d" * 17, "PL": "d" * 24}  # fmt: skip


def iban(rng: random.Random) -> str:
    country = rng.choice(sorted(IBAN_FORMS))
    body = "".join(rng.choice(string.digits if c == "d" else string.ascii_uppercase) for c in IBAN_FORMS[country])
    as_number = "".join(str(int(c, 36)) for c in f"{body}{country}00")
    whole = f"{country}{98 - int(as_number) % 97:02d}{body}"
    return rng.choice([whole, " ".join(whole[i : i + 4] for i in range(0, len(whole), 4))])


FIRST = ["anna", "jose", "li.wei", "o.brien", "fatima", "k", "sven_b", "maria-jose", "bob.smith", "x.y.z"]
LAST = ["smith", "garcia77", "chen", "nguyen", "mueller", "okafor", "rossi_1", "dubois", "kim", "novak"]
HOSTS = ["gmail.com", "mail.co.uk", "my-shop.example", "uni-bonn.de", "acme.io", "sub.dept.company.org", "web.fr"]


def email(rng: random.Random) -> str:
    name = rng.choice([f"{rng.choice(FIRST)}.{rng.choice(LAST)}", rng.choice(FIRST) + str(rng.randrange(99)),
                       f"{rng.choice(LAST)}+{rng.choice(['news', 'x1'])}"])  # fmt: skip
    address = f"{name}@{rng.choice(HOSTS)}"
    return address.upper() if rng.random() < 0.1 else address


def phone(rng: random.Random) -> tuple[str, bool]:
    """(number, whether it carries its country code)."""
    area = rng.choice(["212", "415", "650", "206", "303", "512", "617", "702", "808", "312"])
    exchange, line = f"{rng.randrange(2, 10)}{digits(rng, 2)}", digits(rng, 4)
    if exchange.endswith("11"):
        exchange = exchange[:2] + "3"
    subscriber = rng.randrange(10**5, 10**6)
    forms = [
        (f"({area}) {exchange}-{line}", False),
        (f"{area}-{exchange}-{line}", False),
        (f"{area}.{exchange}.{line}", False),
        (f"+1 {area} {exchange} {line}", True),
        (f"+1-{area}-{exchange}-{line}", True),
        (f"07{rng.choice('45789')}{digits(rng, 2)} {subscriber}", False),
        (f"+44 7{rng.choice('45789')}{digits(rng, 2)} {subscriber}", True),
        (f"020 7{digits(rng, 3)} {digits(rng, 4)}", False),
        (f"+49 30 {rng.randrange(2, 9)}{digits(rng, 7)}", True),
        (f"+33 6 {' '.join(digits(rng, 2) for _ in range(4))}", True),
        (f"+91 9{digits(rng, 4)} {digits(rng, 5)}", True),
        (f"+61 4{digits(rng, 2)} {digits(rng, 3)} {digits(rng, 3)}", True),
    ]
    return rng.choice(forms)


def ssn(rng: random.Random) -> str:
    return f"{rng.randrange(100, 660):03d}-{rng.randrange(1, 100):02d}-{rng.randrange(1, 10000):04d}"


def nino(rng: random.Random) -> str:
    gap = rng.choice(["", " "])
    first, second = rng.choice("ABCEHJLMPRSTWX"), rng.choice("ABCEHJLMPRSTWX")
    return f"{first}{second}{gap}{digits(rng, 2)}{gap}{digits(rng, 2)}{gap}{digits(rng, 2)}{gap}{rng.choice('ABCD')}"


def dni(rng: random.Random) -> str:
    number = rng.randrange(10**7, 10**8)
    return f"{number}{'TRWAGMYFPDXBNJZSQVHLCKE'[number % 23]}"


def cpf(rng: random.Random) -> str:
    body = digits(rng, 9)
    for size in (10, 11):
        total = sum(int(d) * (size - i) for i, d in enumerate(body))
        body += str((total * 10 % 11) % 10)
    return f"{body[:3]}.{body[3:6]}.{body[6:9]}-{body[9:]}"


def national_id(rng: random.Random) -> str:
    return rng.choice([ssn, nino, dni, cpf])(rng)


MONTHS = ["January", "February", "March", "April", "June", "July", "August", "October", "December"]


def birthday(rng: random.Random) -> str:
    day, month, year = rng.randrange(1, 29), rng.randrange(1, 13), rng.randrange(1930, 2012)
    name = rng.choice(MONTHS)
    return rng.choice([f"{day:02d}/{month:02d}/{year}", f"{year}-{month:02d}-{day:02d}", f"{day}.{month}.{year}",
                       f"{day} {name} {year}", f"{name} {day}, {year}"])  # fmt: skip


def address(rng: random.Random) -> str:
    first = rng.choice([5, 8, 23, 34, 52, 81, 93, 104, 151, 185, 203])
    if rng.random() < 0.25:
        return f"2001:4{rng.choice('68')}0:" + ":".join(f"{rng.randrange(1, 65536):x}" for _ in range(6))
    return f"{first}.{rng.randrange(256)}.{rng.randrange(256)}.{rng.randrange(1, 255)}"


ALNUM = string.ascii_letters + string.digits


def some(rng: random.Random, number: int, alphabet: str = ALNUM) -> str:
    return "".join(rng.choices(alphabet, k=number))


def password(rng: random.Random) -> str:
    return f"{some(rng, rng.randrange(6, 10))}{rng.choice('!#%+-_')}{digits(rng, 3)}{some(rng, 2)}"


def token(rng: random.Random) -> str:
    upper = string.ascii_uppercase + "234567"
    return rng.choice([
        "AKIA" + some(rng, 16, upper), "ghp_" + some(rng, 36), "glpat-" + some(rng, 20), "hf_" + some(rng, 34),
        f"xoxb-{digits(rng, 12)}-{some(rng, 24)}", "AIza" + some(rng, 35), "sk_live_" + some(rng, 24),
        "sk-" + some(rng, 40), f"SG.{some(rng, 22)}.{some(rng, 43)}", "npm_" + some(rng, 36),
        f"eyJ{some(rng, 20)}.eyJ{some(rng, 40)}.{some(rng, 43)}",
    ])  # fmt: skip


def private_key(rng: random.Random) -> str:
    kind = rng.choice(["RSA ", "EC ", "OPENSSH ", ""])
    body = "\n".join(some(rng, 64, ALNUM + "+/") for _ in range(rng.randrange(3, 8)))
    return f"-----BEGIN {kind}PRIVATE KEY-----\n{body}\n-----END {kind}PRIVATE KEY-----"


def blob(rng: random.Random) -> str:
    return some(rng, rng.randrange(40, 80))


def credentials(rng: random.Random) -> str:
    return f"{rng.choice(LAST)}:{some(rng, 10)}"


FRAMES: dict[str, tuple[Sequence[str], Make]] = {
    "email": (["Write to {} please.", "my address: {}", "<{}>", "Contact ({}) or wait.", "{}, thanks"], email),
    "card": (["I paid with {} yesterday.", "card number {}", "Visa {} was charged twice.", "no. {}, exp 08/27"], card),
    "iban": (["Transfer it to {} today.", "IBAN: {}", "my account is {} at the bank.", "Refund ({})."], iban),
    "national_id": (["SSN {}", "my id is {}, born here.", "National Insurance {} on file.", "({})"], national_id),
    "date_of_birth": (["born on {}", "Date of birth: {}", "DOB {}", "She was born {} in Leeds."], birthday),
    "ip": (["from {} at night", "The server {} is down.", "IP: {}", "blocked {}, why?"], address),
    "url_credentials": (
        ["use https://{}@git.example.org/x", "ftp://{}@files.net", "postgres://{}@db:5432"],
        credentials,
    ),
    "password": (["password: {}", "the password is {}", 'api_key = "{}"', "PASSWORD={}", "secret: {} ok"], password),
    "token": (["use {} for the API", "token {}", "key={}", "export KEY='{}'", "it printed {} and stopped."], token),
    "private_key": (["{}", "Here is the key:\n{}\nKeep it.", "cat id_rsa\n{}"], private_key),
    "high_entropy": (["the value {} was stored", "blob: {}", "it said {} then stopped"], blob),
}
PHONE_FRAMES = [
    "Call me at {}.",
    "my phone number is {}",
    "tel. {}",
    "Mobile: {}",
    "text me on {} tonight",
    "fax {}, please",
]
PHONE_BARE = ["I am {} if needed.", "({})", "Anna, {}, Leeds"]

LOOKALIKES: list[tuple[str, Make]] = [
    ("order {} is late", lambda rng: digits(rng, rng.choice([8, 10, 12]))),
    ("invoice no {}", lambda rng: f"{digits(rng, 3)}-{digits(rng, 7)}"),
    ("it costs ${}", lambda rng: f"{rng.randrange(10**6):,}.{digits(rng, 2)}"),
    ("on {} at noon", lambda rng: f"20{digits(rng, 2)}-{rng.randrange(1, 13):02d}-{rng.randrange(1, 29):02d}"),
    ("version {}", lambda rng: f"{rng.randrange(9)}.{rng.randrange(30)}.{rng.randrange(9)}.{rng.randrange(99)}"),
    ("the router at {}", lambda rng: f"192.168.{rng.randrange(256)}.{rng.randrange(256)}"),
    ("digest {}", lambda rng: some(rng, rng.choice([32, 40, 64]), "0123456789abcdef")),
    ("id {}", lambda rng: "-".join(some(rng, n, "0123456789abcdef") for n in (8, 4, 4, 4, 12))),
    ("ISBN {}", lambda rng: f"978-{digits(rng, 1)}-{digits(rng, 4)}-{digits(rng, 4)}-{digits(rng, 1)}"),
    ("{} = x", lambda rng: f"{digits(rng, 4)} - {digits(rng, 3)}"),
    ("serial {}", lambda rng: "SN" + digits(rng, 10)),
    ("tracking number {}", lambda rng: "1Z" + some(rng, 16, string.ascii_uppercase + string.digits)),
    ("follow @{}", lambda rng: rng.choice(LAST)),
    ("from {} to", lambda rng: f"{rng.randrange(1900, 2026)}-{rng.randrange(1900, 2026)}"),
    ("population {}", lambda rng: f"{rng.randrange(10**7, 10**9):,}"),
    ("the password is {}", lambda rng: rng.choice(["incorrect", "too short", "required", "case-sensitive"])),
    ("ratio {}", lambda rng: f"0.{digits(rng, 12)}"),
    ("results {}", lambda rng: " ".join(digits(rng, rng.randrange(1, 4)) for _ in range(6))),
    ("path /usr/share/{}", lambda rng: "/".join(rng.choice(["doc", "lib64", "python3.11", "Fonts"]) for _ in range(6))),
]


def plant_private(texts: Sequence[str], per_kind: int, seed: int = 0) -> list[Planted]:
    """`per_kind` texts with one value of each kind, and as many with a lookalike, three times over."""
    rng = random.Random(seed)
    found = []
    for kind in [*FRAMES, "phone"]:
        for _ in range(per_kind):
            if kind == "phone":
                value, has_code = phone(rng)
                frame = rng.choice(PHONE_FRAMES + (PHONE_BARE if has_code else []))
            else:
                frames, make = FRAMES[kind]
                value, frame = make(rng), rng.choice(frames)
            found.append(_set_in(rng, rng.choice(texts), frame, value, kind))
    for _ in range(3 * per_kind):
        frame, make = rng.choice(LOOKALIKES)
        found.append(_set_in(rng, rng.choice(texts), frame, make(rng), ""))
    return found


def _set_in(rng: random.Random, text: str, frame: str, value: str, kind: str) -> Planted:
    before, after = frame.split("{}")
    sentences = text.replace("@", " ").split(". ")
    at = rng.randrange(len(sentences) + 1)
    head = ". ".join(sentences[:at])
    head = f"{head}. {before}" if head else before
    tail = after + (" " + ". ".join(sentences[at:]) if at < len(sentences) else "")
    return Planted(head + value + tail, kind, len(head), len(head) + len(value))


def word_grams(text: str) -> set[tuple[str, ...]]:
    """Word 3-grams, by their own definition: runs of letters and digits, in lower case."""
    words = "".join(c.lower() if c.isalnum() else " " for c in text).split()
    return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}


def overlap(a: set, b: set) -> float:
    return len(a & b) / len(a | b)


def near_copy(rng: random.Random, text: str, wanted: float) -> str:
    """`text` with words replaced, dropped or inserted until its similarity falls to about `wanted`."""
    words, grams = text.split(), word_grams(text)
    last = list(words)
    while True:
        place = rng.randrange(len(words))
        action = rng.random()
        if action < 0.6:
            words[place] = f"changed{rng.randrange(10**6)}"
        elif action < 0.8:
            del words[place]
        else:
            words.insert(place, f"added{rng.randrange(10**6)}")
        likeness = overlap(grams, word_grams(" ".join(words)))
        if likeness < wanted:
            return " ".join(words if likeness >= 0.9 else last)
        last = list(words)


def make_texts(number: int, words: int, seed: int = 0) -> list[str]:
    """Texts of about `words` words drawn from 3,000 by a Zipf law, in sentences; no two are alike."""
    rng = random.Random(seed)
    syllables = [a + b for a in "bcdfgklmnprstvw" for b in ("a", "e", "i", "o", "u", "ar", "en", "il")]
    vocabulary = list(dict.fromkeys("".join(rng.choices(syllables, k=rng.randrange(1, 4))) for _ in range(6000)))[:3000]
    weights = [1 / (rank + 3) for rank in range(len(vocabulary))]
    texts = []
    for _ in range(number):
        chosen = rng.choices(vocabulary, weights, k=rng.randrange(words // 2, words * 3 // 2))
        cuts = range(0, len(chosen), 11)
        texts.append(". ".join(" ".join(chosen[i : i + 11]).capitalize() for i in cuts) + ".")
    return texts
