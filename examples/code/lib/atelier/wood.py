"""Boards of tonewood: what they weigh, what can be cut of them, where they dry."""

from atelier.records import Board

DENSITY = {"spruce": 420, "maple": 640, "willow": 450, "poplar": 430, "ebony": 1050, "rosewood": 850}
SPEED = {"spruce": 5600, "maple": 4300, "willow": 4100, "poplar": 4600, "ebony": 3900, "rosewood": 4000}
SHRINKAGE = {"spruce": 0.24, "maple": 0.27, "willow": 0.21, "poplar": 0.25, "ebony": 0.31, "rosewood": 0.22}
TOP_MM = (380, 260)


def volume_dm3(board: Board) -> float:
    """Volume in cubic decimetres."""
    return round(board["length_mm"] * board["width_mm"] * board["thickness_mm"] / 1e6, 3)


def density(board: Board) -> float:
    """Kilograms per cubic metre at the board's moisture."""
    return round(DENSITY[board["species"]] * (1 + (board["moisture_pct"] - 8) / 200), 1)


def mass_kg(board: Board) -> float:
    """What the board weighs."""
    return round(volume_dm3(board) * density(board) / 1000, 3)


def face_dm2(board: Board) -> float:
    """Area of the wide side."""
    return round(board["length_mm"] * board["width_mm"] / 1e4, 2)


def price_per_dm3(board: Board) -> float:
    """Price of a cubic decimetre."""
    return round(board["price_eur"] / volume_dm3(board), 2)


def years_dried(board: Board, year: int) -> int:
    """Full years between felling and `year`."""
    return max(0, year - board["felled"])


def shrinkage_mm(board: Board, pct: float) -> float:
    """By how much the width shrinks until the moisture is `pct`."""
    loss = max(0.0, board["moisture_pct"] - pct)
    return round(board["width_mm"] * loss * SHRINKAGE[board["species"]] / 100, 2)


def sound_speed(board: Board) -> float:
    """Metres per second along the grain; damp wood is slower."""
    return round(SPEED[board["species"]] * (1 - (board["moisture_pct"] - 8) / 100), 0)


def radiation_ratio(board: Board) -> float:
    """Sound speed over density: high is loud."""
    return round(sound_speed(board) / density(board), 2)


def tops_from(board: Board) -> int:
    """How many violin tops can be cut, side by side and end to end."""
    return int(board["length_mm"] // TOP_MM[0]) * int(board["width_mm"] // TOP_MM[1])


def offcut_share(board: Board) -> float:
    """Share of the wide side that is left after cutting tops."""
    used = tops_from(board) * TOP_MM[0] * TOP_MM[1]
    return round(1 - used / (board["length_mm"] * board["width_mm"]), 3)


def is_dry(board: Board, limit_pct: float) -> bool:
    """Is the moisture at most the limit?"""
    return board["moisture_pct"] <= limit_pct


def is_top_wood(board: Board) -> bool:
    """Only spruce of grade A or B becomes a top."""
    return board["species"] == "spruce" and board["grade"] in ("A", "B")


def fits_cello(board: Board) -> bool:
    """Long, wide and thick enough for half a cello back."""
    return board["length_mm"] >= 800 and board["width_mm"] >= 230 and board["thickness_mm"] >= 35


def needs_wax(board: Board) -> bool:
    """Fresh wood cracks at its ends unless they are waxed."""
    return board["moisture_pct"] > 14


def tag(board: Board) -> str:
    """What is chalked on the board, as in SPR-A-2014."""
    return f"{board['species'][:3].upper()}-{board['grade']}-{board['felled']}"


def loft(board: Board) -> str:
    """The loft in which it lies."""
    return "damp loft" if board["moisture_pct"] > 14 else "middle loft" if board["moisture_pct"] > 8 else "dry loft"


def planed(board: Board, mm: float) -> Board:
    """The board after so much of its thickness was planed off."""
    return {**board, "thickness_mm": board["thickness_mm"] - mm}


def crosscut(board: Board, length_mm: float) -> Board:
    """The board shortened to a length."""
    return {**board, "length_mm": min(length_mm, board["length_mm"])}


def dried_to(board: Board, pct: float) -> Board:
    """The board at that moisture, with its width shrunk."""
    return {**board, "width_mm": board["width_mm"] - shrinkage_mm(board, pct), "moisture_pct": pct}


def of_species(boards: list[Board], species: str) -> list[Board]:
    """Boards of one species."""
    return [board for board in boards if board["species"] == species]


def at_least_grade(boards: list[Board], grade: str) -> list[Board]:
    """Boards of that grade or a better one."""
    return [board for board in boards if board["grade"] <= grade]


def oldest_first(boards: list[Board]) -> list[Board]:
    """By the year of felling."""
    return sorted(boards, key=lambda board: board["felled"])


def seasoned(boards: list[Board], year: int) -> list[Board]:
    """Boards that have dried for ten years."""
    return [board for board in boards if years_dried(board, year) >= 10]


def stock_value(boards: list[Board]) -> float:
    """What all boards cost together."""
    return round(sum(board["price_eur"] for board in boards), 2)


def mean_moisture(boards: list[Board]) -> float:
    """Average moisture in percent; 0 for no board."""
    return round(sum(board["moisture_pct"] for board in boards) / max(1, len(boards)), 2)
