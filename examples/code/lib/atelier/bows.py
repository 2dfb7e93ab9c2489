"""Bows: balance, hair, permits."""

from atelier.calendar_days import days_between
from atelier.records import Bow

PROTECTED = ("pernambuco", "snakewood")


def moment_gm(bow: Bow) -> float:
    """Mass times balance, in gram-metres: how heavy it feels."""
    return round(bow["mass_g"] * bow["balance_mm"] / 1000, 2)


def tip_g(bow: Bow) -> float:
    """What the tip weighs on a scale while the frog is held."""
    return round(bow["mass_g"] * bow["balance_mm"] / bow["length_mm"], 2)


def hair_days(bow: Bow, today: str) -> int:
    """Age of its hair."""
    return days_between(bow["rehaired"], today)


def rehair_eur(bow: Bow) -> float:
    """Price of new hair."""
    return round(38 + 4.5 * bow["hair_g"], 2)


def stick_g(bow: Bow) -> float:
    """Mass without hair."""
    return round(bow["mass_g"] - bow["hair_g"], 2)


def eur_per_gram(bow: Bow) -> float:
    """Price over mass."""
    return round(bow["price_eur"] / bow["mass_g"], 2)


def is_light(bow: Bow, grams: float) -> bool:
    """Below so many grams."""
    return bow["mass_g"] < grams


def needs_permit(bow: Bow) -> bool:
    """Is its wood protected?"""
    return bow["wood"] in PROTECTED


def needs_hair(bow: Bow, today: str) -> bool:
    """After eight months."""
    return hair_days(bow, today) > 240


def is_tip_heavy(bow: Bow) -> bool:
    """Balance beyond 0.26 of the length."""
    return bow["balance_mm"] > 0.26 * bow["length_mm"]


def case_note(bow: Bow) -> str:
    """The note in its case."""
    return f"{bow['maker']}, {bow['wood']}, {bow['mass_g']:g} g"


def permit_code(bow: Bow) -> str:
    """Code for the border, or `free`."""
    return f"CITES-{bow['wood'][:2].upper()}" if needs_permit(bow) else "free"


def rehaired_on(bow: Bow, day: str) -> Bow:
    """With new hair."""
    return {**bow, "rehaired": day}


def weighted(bow: Bow, grams: float) -> Bow:
    """With a heavier winding: the balance moves to the frog by 2 mm a gram."""
    return {**bow, "mass_g": bow["mass_g"] + grams, "balance_mm": bow["balance_mm"] - 2 * grams}


def marked_down(bow: Bow, pct: float) -> Bow:
    """With so many percent off."""
    return {**bow, "price_eur": round(bow["price_eur"] * (1 - pct / 100), 2)}


def of_wood(bows: list[Bow], wood: str) -> list[Bow]:
    """Of one wood."""
    return [bow for bow in bows if bow["wood"] == wood]


def lightest_first(bows: list[Bow]) -> list[Bow]:
    """By mass."""
    return sorted(bows, key=lambda bow: bow["mass_g"])


def for_travel(bows: list[Bow]) -> list[Bow]:
    """Those that cross borders without a permit."""
    return [bow for bow in bows if not needs_permit(bow)]


def hair_order_g(bows: list[Bow]) -> float:
    """Hair to buy for rehairing all, with a fifth to spare."""
    return round(1.2 * sum(bow["hair_g"] for bow in bows), 1)


def rack_price(bows: list[Bow]) -> float:
    """What all cost together."""
    return round(sum(bow["price_eur"] for bow in bows), 2)
