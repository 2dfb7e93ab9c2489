"""Conversions and the way the workshop writes figures."""


def mm_to_inch(mm: float) -> float:
    """Inches, to a hundredth."""
    return round(mm / 25.4, 2)


def g_to_oz(g: float) -> float:
    """Ounces, to a hundredth."""
    return round(g / 28.3495, 2)


def kg_to_lb(kg: float) -> float:
    """Pounds, to a hundredth."""
    return round(kg * 2.20462, 2)


def n_to_kgf(n: float) -> float:
    """Kilograms-force, to a hundredth."""
    return round(n / 9.80665, 2)


def dm3_to_board_feet(dm3: float) -> float:
    """Board feet, to a hundredth."""
    return round(dm3 / 2.35974, 2)


def days_to_weeks(days: float) -> int:
    """Full weeks."""
    return int(days // 7)


def h_to_workdays(h: float) -> float:
    """Days of seven hours at the bench."""
    return round(h / 7, 2)


def min_to_h(minutes: float) -> float:
    """Hours, to a hundredth."""
    return round(minutes / 60, 2)


def shop_price(eur: float) -> float:
    """What the price tag says: the next price that ends in .90."""
    return int(eur + 0.1) + 0.9


def with_tax(eur: float) -> float:
    """With 19 percent."""
    return round(eur * 1.19, 2)


def money(eur: float) -> str:
    """1234.5 -> `1,234.50 EUR`."""
    return f"{eur:,.2f} EUR"


def as_percent(share: float) -> str:
    """0.125 -> `12.5%`."""
    return f"{100 * share:.1f}%"


def starred(figure: float) -> str:
    """One star for every started quarter of 1, at most four."""
    return "*" * max(0, min(4, int(figure * 4 + 0.999)))
