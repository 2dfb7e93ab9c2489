"""Instruments in the showroom: sizes, condition, money."""

from atelier.records import Instrument

FULL_BODY_MM = {"violin": 355, "viola": 405, "cello": 755}
HEAVY_G = {"violin": 460, "viola": 620, "cello": 2900}


def stop_ratio(instrument: Instrument) -> float:
    """Stop over body length; 0.55 is usual."""
    return round(instrument["stop_mm"] / instrument["body_mm"], 3)


def scale_mm(instrument: Instrument) -> float:
    """Sounding length of the strings: stop and two thirds of it as neck."""
    return round(instrument["stop_mm"] * 5 / 3, 1)


def age_years(instrument: Instrument, year: int) -> int:
    """How old it is."""
    return year - instrument["year"]


def insured_eur(instrument: Instrument) -> float:
    """Sum for the insurance: better kept ones in full."""
    return round(instrument["price_eur"] * (0.5 + instrument["condition"] / 10), 2)


def rent_eur(instrument: Instrument, months: int) -> float:
    """Rent for so many months, at 1.5 percent of the price each."""
    return round(0.015 * instrument["price_eur"] * months, 2)


def restoration_h(instrument: Instrument) -> float:
    """Hours of work until it is perfect."""
    return 12.0 * (5 - instrument["condition"])


def grams_over(instrument: Instrument) -> float:
    """Mass above what its kind should weigh at most; 0 for none."""
    return max(0.0, instrument["mass_g"] - HEAVY_G[instrument["kind"]])


def is_full_size(instrument: Instrument) -> bool:
    """Within five millimetres of the full body."""
    return abs(instrument["body_mm"] - FULL_BODY_MM[instrument["kind"]]) <= 5


def is_antique(instrument: Instrument, year: int) -> bool:
    """A hundred years or more."""
    return age_years(instrument, year) >= 100


def needs_repair(instrument: Instrument) -> bool:
    """Condition below 3."""
    return instrument["condition"] < 3


def has_short_stop(instrument: Instrument) -> bool:
    """A stop ratio below 0.545."""
    return stop_ratio(instrument) < 0.545


def passport(instrument: Instrument) -> str:
    """Line for the customs."""
    return f"{instrument['kind']} by {instrument['maker']}, {instrument['year']}"


def size_name(instrument: Instrument) -> str:
    """4/4, 3/4 or smaller, by the body."""
    share = instrument["body_mm"] / FULL_BODY_MM[instrument["kind"]]
    return "4/4" if share > 0.97 else "3/4" if share > 0.92 else "1/2"


def restored(instrument: Instrument) -> Instrument:
    """One grade better; the price rises by a fifth."""
    better = min(5, instrument["condition"] + 1)
    return {**instrument, "condition": better, "price_eur": round(instrument["price_eur"] * 1.2, 2)}


def graduated(instrument: Instrument, grams: float) -> Instrument:
    """After its plates were thinned."""
    return {**instrument, "mass_g": instrument["mass_g"] - grams}


def repriced(instrument: Instrument, pct: float) -> Instrument:
    """With its price changed by so many percent."""
    return {**instrument, "price_eur": round(instrument["price_eur"] * (1 + pct / 100), 2)}


def of_maker(instruments: list[Instrument], maker: str) -> list[Instrument]:
    """By one maker."""
    return [instrument for instrument in instruments if instrument["maker"] == maker]


def rentable(instruments: list[Instrument]) -> list[Instrument]:
    """Sound ones that are not too dear."""
    return [item for item in instruments if item["condition"] >= 3 and item["price_eur"] < 9000]


def finest_first(instruments: list[Instrument]) -> list[Instrument]:
    """By price."""
    return sorted(instruments, key=lambda instrument: -instrument["price_eur"])


def showroom_eur(instruments: list[Instrument]) -> float:
    """What all cost together."""
    return round(sum(instrument["price_eur"] for instrument in instruments), 2)


def mean_condition(instruments: list[Instrument]) -> float:
    """Average condition; 0 for none."""
    return round(sum(instrument["condition"] for instrument in instruments) / max(1, len(instruments)), 2)
