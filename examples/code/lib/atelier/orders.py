"""Orders: what is to be done, until when, for how much."""

from atelier.calendar_days import days_between, shifted
from atelier.records import Order

RATE_EUR = {"repair": 62, "setup": 48, "new": 55}
VAT = 0.19


def labour_eur(order: Order) -> float:
    """Hours at the rate of this kind of work."""
    return order["hours"] * RATE_EUR[order["kind"]]


def net_eur(order: Order) -> float:
    """Labour and parts."""
    return labour_eur(order) + order["parts_eur"]


def vat_eur(order: Order) -> float:
    """The tax on it."""
    return round(net_eur(order) * VAT, 2)


def balance_eur(order: Order) -> float:
    """What the customer still owes, tax included."""
    return round(net_eur(order) + vat_eur(order) - order["paid_eur"], 2)


def deposit_eur(order: Order) -> float:
    """Asked for in advance: all parts and a fifth of the labour."""
    return round(order["parts_eur"] + labour_eur(order) / 5, 2)


def days_open(order: Order, today: str) -> int:
    """Days since it came in."""
    return days_between(order["received"], today)


def days_to_go(order: Order, today: str) -> int:
    """Days until it is due; negative when that has passed."""
    return days_between(today, order["due"])


def late_discount_eur(order: Order, today: str) -> float:
    """What is taken off for being late: 2 euros a day."""
    return 2.0 * max(0, -days_to_go(order, today))


def is_late(order: Order, today: str) -> bool:
    """Not done and past its day."""
    return not order["done"] and order["due"] < today


def is_settled(order: Order) -> bool:
    """Is nothing owed?"""
    return balance_eur(order) <= 0


def is_rush(order: Order) -> bool:
    """Due within a week of coming in."""
    return days_between(order["received"], order["due"]) <= 7


def is_mostly_parts(order: Order) -> bool:
    """Do parts cost more than labour?"""
    return order["parts_eur"] > labour_eur(order)


def ticket(order: Order) -> str:
    """What hangs on the instrument."""
    return f"#{order['number']} {order['customer']}"


def stage(order: Order) -> str:
    """waiting for pickup, in work or closed."""
    if not order["done"]:
        return "in work"
    return "closed" if is_settled(order) else "waiting for pickup"


def with_payment(order: Order, eur: float) -> Order:
    """After the customer paid something."""
    return {**order, "paid_eur": order["paid_eur"] + eur}


def postponed(order: Order, days: int) -> Order:
    """Due later."""
    return {**order, "due": shifted(order["due"], days)}


def extended(order: Order, hours: float) -> Order:
    """With more hours than first thought."""
    return {**order, "hours": order["hours"] + hours}


def unfinished(orders: list[Order]) -> list[Order]:
    """Those not done."""
    return [order for order in orders if not order["done"]]


def due_by(orders: list[Order], day: str) -> list[Order]:
    """Those due on a day or before."""
    return [order for order in orders if order["due"] <= day]


def of_customer(orders: list[Order], customer: str) -> list[Order]:
    """Those of one customer."""
    return [order for order in orders if order["customer"] == customer]


def most_urgent_first(orders: list[Order]) -> list[Order]:
    """By the day on which they are due."""
    return sorted(orders, key=lambda order: order["due"])


def bench_hours(orders: list[Order]) -> float:
    """Hours of all."""
    return sum(order["hours"] for order in orders)


def receivable_eur(orders: list[Order]) -> float:
    """What all customers owe together."""
    return round(sum(max(0.0, balance_eur(order)) for order in orders), 2)
