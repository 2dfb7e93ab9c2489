"""What the workshop writes down about its things."""

from typing import TypedDict


class Board(TypedDict):
    """A piece of tonewood in the loft. grade: A, B or C; felled: the year."""

    species: str
    length_mm: float
    width_mm: float
    thickness_mm: float
    moisture_pct: float
    grade: str
    felled: int
    price_eur: float


class Batch(TypedDict):
    """A jar of varnish. base: oil or spirit; hue: 0 (pale) to 10 (dark red); cooked: the day."""

    name: str
    base: str
    resin_g: float
    oil_g: float
    solvent_g: float
    hue: int
    cooked: str


class String(TypedDict):
    """A kind of string on the shelf. note as in A4; core: gut, steel or synthetic; stock: packets."""

    brand: str
    note: str
    core: str
    gauge_mm: float
    length_mm: float
    stock: int
    price_eur: float


class Instrument(TypedDict):
    """An instrument in the showroom. kind: violin, viola or cello; condition: 1 (wreck) to 5 (perfect)."""

    kind: str
    maker: str
    year: int
    body_mm: float
    stop_mm: float
    mass_g: float
    condition: int
    price_eur: float


class Bow(TypedDict):
    """A bow. balance_mm: from the frog to the point of balance; rehaired: the day."""

    wood: str
    maker: str
    mass_g: float
    balance_mm: float
    length_mm: float
    hair_g: float
    rehaired: str
    price_eur: float


class Order(TypedDict):
    """Work for a customer. kind: repair, setup or new."""

    number: int
    customer: str
    kind: str
    received: str
    due: str
    hours: float
    parts_eur: float
    paid_eur: float
    done: bool


class Tool(TypedDict):
    """A cutting tool. uses: since it was sharpened; shelf as in B2."""

    name: str
    kind: str
    edge_deg: float
    width_mm: float
    uses: int
    shelf: str
    sharpened: str
    price_eur: float
