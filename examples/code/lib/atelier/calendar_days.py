"""Days between ISO dates, for the other modules."""

from datetime import date, timedelta


def days_between(first: str, last: str) -> int:
    """Days from `first` to `last`; negative when it is the other way round."""
    return (date.fromisoformat(last) - date.fromisoformat(first)).days


def shifted(day: str, days: int) -> str:
    """The date so many days later."""
    return (date.fromisoformat(day) + timedelta(days=days)).isoformat()
