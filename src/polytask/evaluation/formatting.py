"""Numbers as people read them: the same everywhere (console, report, LaTeX, Markdown)."""

import math
from collections.abc import Iterable

UNDEFINED = "undefined"
MINUS = "\N{MINUS SIGN}"
_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def decimals(values: Iterable[float | None], significant: int = 4) -> int:
    """Decimals that give the largest of these values four significant digits, 5 at most.

    >>> decimals([0.93, 0.871]), decimals([12.3]), decimals([])
    (4, 2, 4)
    """
    largest = max((abs(value) for value in values if value and math.isfinite(value)), default=0.5)
    return max(0, min(5, significant - 1 - math.floor(math.log10(largest))))


def fixed(value: float | None, places: int) -> str:
    """
    >>> fixed(-0.5, 2), fixed(None, 2)
    ('−0.50', 'undefined')
    """
    if value is None or not math.isfinite(value):
        return UNDEFINED
    return _not_negative_zero(f"{value:.{places}f}").replace("-", MINUS)


def signed(value: float | None, places: int) -> str:
    """
    >>> signed(0.5, 2), signed(-0.001, 2)
    ('+0.50', '0.00')
    """
    if value is None:
        return UNDEFINED
    text = _not_negative_zero(f"{value:+.{places}f}")
    return text.replace("-", MINUS)


def percent(value: float | None) -> str:
    """
    >>> percent(1.234)
    '+1.2 %'
    """
    return UNDEFINED if value is None else f"{signed(value, _percent_places(value))} %"


def percent_range(low: float, high: float) -> str:
    """
    >>> percent_range(0.42, 2.01)
    '+0.4 to +2.0'
    """
    places = _percent_places(max(abs(low), abs(high)))
    return f"{signed(low, places)} to {signed(high, places)}"


def duration(seconds: float | None) -> str:
    """
    >>> duration(3.21), duration(85), duration(3723), duration(None)
    ('3.2 s', '1 min 25 s', '1 h 2 min', 'not measured')
    """
    if seconds is None:
        return "not measured"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def magnitude(number: float | None) -> str:
    """
    >>> magnitude(412345), magnitude(22_700_000), magnitude(310)
    ('412 k', '22.7 M', '310')
    """
    if number is None:
        return "not measured"
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}" if number / size < 999.5 else f"{number / size:.0f} {unit}"
    return f"{number:.0f}"


def megabytes(value: float | None) -> str:
    """
    >>> megabytes(312.4), megabytes(2500), megabytes(None)
    ('312 MB', '2.5 GB', 'not measured')
    """
    if value is None:
        return "not measured"
    return f"{value:.0f} MB" if value < 1000 else f"{value / 1000:.1f} GB"


def ratio(value: float) -> str:
    """
    >>> ratio(0.417), ratio(1.02), ratio(12.3)
    ('0.42', '1.0', '12')
    """
    return f"{value:.2f}" if value < 0.995 else f"{value:.1f}" if value < 10 else f"{value:.0f}"


def in_words(number: int) -> str:
    """
    >>> in_words(3), in_words(40)
    ('three', '40')
    """
    return _WORDS[number] if number < len(_WORDS) else str(number)


def counted(number: int, noun: str) -> str:
    """
    >>> counted(1, "task"), counted(3, "task")
    ('1 task', '3 tasks')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def listed(names: Iterable[str]) -> str:
    """
    >>> listed(["a"]), listed(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    names = list(names)
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else "none"


def _percent_places(value: float) -> int:
    return 1 if abs(value) >= 0.1 or value == 0 else 2


def _not_negative_zero(text: str) -> str:
    return text.lstrip("+-") if float(text) == 0 else text
