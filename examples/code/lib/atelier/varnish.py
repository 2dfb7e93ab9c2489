"""Varnish: what is in a jar, how far it goes, how long it dries."""

from atelier.calendar_days import days_between
from atelier.records import Batch

PRICE_PER_G = {"resin_g": 0.09, "oil_g": 0.03, "solvent_g": 0.012}
SHADES = ("straw", "gold", "amber", "chestnut", "ruby")
SOLIDS_PER_M2 = 55


def total_g(batch: Batch) -> float:
    """Mass of the whole jar."""
    return batch["resin_g"] + batch["oil_g"] + batch["solvent_g"]


def resin_ratio(batch: Batch) -> float:
    """Resin to oil; of a spirit varnish, resin to solvent."""
    return round(batch["resin_g"] / (batch["oil_g"] or batch["solvent_g"]), 3)


def solids_pct(batch: Batch) -> float:
    """Percent that stays on the wood."""
    return round(100 * (batch["resin_g"] + batch["oil_g"]) / total_g(batch), 1)


def coverage_m2(batch: Batch) -> float:
    """Area of one coat."""
    return round((batch["resin_g"] + batch["oil_g"]) / SOLIDS_PER_M2, 2)


def coats_for(batch: Batch, area_m2: float) -> int:
    """Full coats for an area."""
    return int(coverage_m2(batch) // area_m2)


def drying_h(batch: Batch) -> float:
    """Hours until a coat can be rubbed."""
    return 3.0 if batch["base"] == "spirit" else round(18 + 10 * batch["oil_g"] / batch["resin_g"], 1)


def age_days(batch: Batch, today: str) -> int:
    """Days since it was cooked."""
    return days_between(batch["cooked"], today)


def material_eur(batch: Batch) -> float:
    """What its ingredients cost."""
    return round(sum(PRICE_PER_G[part] * batch[part] for part in ("resin_g", "oil_g", "solvent_g")), 2)


def cup_seconds(batch: Batch) -> float:
    """Seconds that it takes to run out of the cup: thick varnish is slow."""
    return round(12 + solids_pct(batch) / 2, 1)


def is_spirit(batch: Batch) -> bool:
    """Is it a spirit varnish?"""
    return batch["base"] == "spirit"


def is_too_thick(batch: Batch, limit_s: float) -> bool:
    """Does it run slower than the limit?"""
    return cup_seconds(batch) > limit_s


def has_skin(batch: Batch, today: str) -> bool:
    """An oil varnish has a skin after a year."""
    return batch["base"] == "oil" and age_days(batch, today) > 365


def suits_cello(batch: Batch) -> bool:
    """Enough for four coats of a cello."""
    return coats_for(batch, 1.3) >= 4


def jar_label(batch: Batch) -> str:
    """What the jar says."""
    return f"{batch['name']} ({batch['base']}, {batch['cooked'][:4]})"


def shade(batch: Batch) -> str:
    """The hue in a word."""
    return SHADES[min(4, batch["hue"] // 2)]


def thinned(batch: Batch, grams: float) -> Batch:
    """With more solvent."""
    return {**batch, "solvent_g": batch["solvent_g"] + grams}


def fattened(batch: Batch, grams: float) -> Batch:
    """With more oil."""
    return {**batch, "oil_g": batch["oil_g"] + grams}


def scaled(batch: Batch, factor: float) -> Batch:
    """The recipe for so many times the amount."""
    return {**batch, **{part: round(batch[part] * factor, 1) for part in ("resin_g", "oil_g", "solvent_g")}}


def of_base(batches: list[Batch], base: str) -> list[Batch]:
    """Oil or spirit varnishes."""
    return [batch for batch in batches if batch["base"] == base]


def darkest_first(batches: list[Batch]) -> list[Batch]:
    """By hue."""
    return sorted(batches, key=lambda batch: -batch["hue"])


def cooked_since(batches: list[Batch], day: str) -> list[Batch]:
    """Not older than a day."""
    return [batch for batch in batches if batch["cooked"] >= day]


def resin_stock_g(batches: list[Batch]) -> float:
    """Resin in all jars."""
    return sum(batch["resin_g"] for batch in batches)


def blended_hue(batches: list[Batch]) -> float:
    """Hue of all jars poured together, weighted by resin."""
    return round(sum(batch["hue"] * batch["resin_g"] for batch in batches) / max(1.0, resin_stock_g(batches)), 2)
