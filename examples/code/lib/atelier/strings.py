"""Strings on the shelf: pitch, tension, stock."""

from atelier.records import String

SEMITONES = {"C": -9, "D": -7, "E": -5, "F": -4, "G": -2, "A": 0, "B": 2}
CORE_DENSITY = {"gut": 1.3, "steel": 7.8, "synthetic": 2.6}
STRENGTH_MPA = {"gut": 380, "steel": 1900, "synthetic": 700}
SILK = {"E": "blue", "A": "red", "D": "green", "G": "yellow", "C": "violet"}


def pitch_hz(string: String) -> float:
    """Frequency of its note, A4 = 440."""
    steps = SEMITONES[string["note"][0]] + 12 * (int(string["note"][-1]) - 4)
    return round(440 * 2 ** (steps / 12), 2)


def grams_per_metre(string: String) -> float:
    """Mass of a metre."""
    return round(3.14159 / 4 * string["gauge_mm"] ** 2 * CORE_DENSITY[string["core"]], 3)


def tension_n(string: String) -> float:
    """Tension in newtons at its note and length."""
    return round(grams_per_metre(string) / 1000 * (2 * string["length_mm"] / 1000 * pitch_hz(string)) ** 2, 1)


def break_margin(string: String) -> float:
    """Breaking load over tension: below 1 it snaps."""
    area_mm2 = 3.14159 / 4 * string["gauge_mm"] ** 2
    return round(STRENGTH_MPA[string["core"]] * area_mm2 / tension_n(string), 2)


def shelf_value(string: String) -> float:
    """What its packets are worth."""
    return round(string["stock"] * string["price_eur"], 2)


def reorder_qty(string: String, target: int) -> int:
    """Packets to order to have `target` again."""
    return max(0, target - string["stock"])


def weeks_left(string: String, per_week: int) -> float:
    """How long the stock lasts."""
    return round(string["stock"] / per_week, 1)


def is_low(string: String, minimum: int) -> bool:
    """Are there fewer packets than the minimum?"""
    return string["stock"] < minimum


def is_tight(string: String) -> bool:
    """Above 70 newtons: too much for an old top."""
    return tension_n(string) > 70


def is_baroque(string: String) -> bool:
    """Plain gut."""
    return string["core"] == "gut"


def may_snap(string: String) -> bool:
    """Is the margin below 1.5?"""
    return break_margin(string) < 1.5


def packet_label(string: String) -> str:
    """Brand, note and gauge."""
    return f"{string['brand']} {string['note']} {string['gauge_mm']:.2f}"


def silk_colour(string: String) -> str:
    """Colour of the silk at its end, by note."""
    return SILK.get(string["note"][0], "white")


def restocked(string: String, packets: int) -> String:
    """After a delivery."""
    return {**string, "stock": string["stock"] + packets}


def sold(string: String, packets: int) -> String:
    """After a sale; the stock never falls below 0."""
    return {**string, "stock": max(0, string["stock"] - packets)}


def tuned_to(string: String, note: str) -> String:
    """The same string at another note."""
    return {**string, "note": note}


def of_core(strings: list[String], core: str) -> list[String]:
    """Strings with one kind of core."""
    return [string for string in strings if string["core"] == core]


def highest_first(strings: list[String]) -> list[String]:
    """By pitch."""
    return sorted(strings, key=lambda string: -pitch_hz(string))


def below_price(strings: list[String], eur: float) -> list[String]:
    """Strings that cost less than a limit."""
    return [string for string in strings if string["price_eur"] < eur]


def set_price(strings: list[String]) -> float:
    """One packet of each, with a tenth off from four on."""
    return round(sum(string["price_eur"] for string in strings) * (0.9 if len(strings) >= 4 else 1), 2)


def bridge_load_n(strings: list[String]) -> float:
    """What all of them together press on the bridge."""
    return round(0.43 * sum(tension_n(string) for string in strings), 1)
