"""Tools: edges, shelves, wear."""

from atelier.calendar_days import days_between
from atelier.records import Tool

LIFE_USES = {"plane": 120, "gouge": 60, "knife": 40, "scraper": 15}


def days_unhoned(tool: Tool, today: str) -> int:
    """Days since it was sharpened."""
    return days_between(tool["sharpened"], today)


def honing_min(tool: Tool) -> float:
    """Minutes to sharpen it: wide edges take longer."""
    return round(4 + tool["width_mm"] / 5, 1)


def wear_pct(tool: Tool) -> float:
    """Uses since sharpening, in percent of what its kind stands."""
    return round(100 * tool["uses"] / LIFE_USES[tool["kind"]], 1)


def uses_left(tool: Tool) -> int:
    """Uses until it is dull."""
    return max(0, LIFE_USES[tool["kind"]] - tool["uses"])


def resale_eur(tool: Tool) -> float:
    """60 percent of its price, less for a dull edge."""
    return round(tool["price_eur"] * (0.6 - min(0.3, wear_pct(tool) / 500)), 2)


def is_dull(tool: Tool) -> bool:
    """Used up?"""
    return uses_left(tool) == 0


def is_narrow(tool: Tool, mm: float) -> bool:
    """Below a width."""
    return tool["width_mm"] < mm


def is_steep(tool: Tool) -> bool:
    """An edge above 30 degrees, for hard wood."""
    return tool["edge_deg"] > 30


def is_rusty(tool: Tool, today: str) -> bool:
    """Steel that was not touched for half a year."""
    return days_unhoned(tool, today) > 182


def engraving(tool: Tool) -> str:
    """What is stamped into the handle."""
    return f"{tool['name']}/{tool['width_mm']:g}"


def cabinet(tool: Tool) -> str:
    """The cabinet that its shelf belongs to."""
    return f"cabinet {tool['shelf'][0]}"


def honed(tool: Tool, day: str) -> Tool:
    """Sharp again."""
    return {**tool, "uses": 0, "sharpened": day}


def used(tool: Tool, times: int) -> Tool:
    """After so many more uses."""
    return {**tool, "uses": tool["uses"] + times}


def reground(tool: Tool, deg: float) -> Tool:
    """With another angle, a millimetre narrower."""
    return {**tool, "edge_deg": deg, "width_mm": tool["width_mm"] - 1}


def on_shelf(tools: list[Tool], shelf: str) -> list[Tool]:
    """Those of one shelf."""
    return [tool for tool in tools if tool["shelf"] == shelf]


def of_kind(tools: list[Tool], kind: str) -> list[Tool]:
    """Planes, gouges, knives or scrapers."""
    return [tool for tool in tools if tool["kind"] == kind]


def most_worn_first(tools: list[Tool]) -> list[Tool]:
    """By wear."""
    return sorted(tools, key=lambda tool: -wear_pct(tool))


def honing_round_min(tools: list[Tool]) -> float:
    """Minutes to sharpen all, with five to set up the stones."""
    return round(5 + sum(honing_min(tool) for tool in tools), 1)


def kit_price(tools: list[Tool]) -> float:
    """What all cost together."""
    return round(sum(tool["price_eur"] for tool in tools), 2)
