"""Format numbers for people: three digits, a unit, '-' for unknown values."""

import math
from decimal import Decimal

MISSING = "-"
_SUFFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_BINARY = ((2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"))
_DECIMAL = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_HUGE = 1e9
"""Larger numbers are shown with an exponent, so that no cell holds hundreds of digits."""


def is_known(value: float | None) -> bool:
    """Whether there is a finite number to show."""
    try:
        return value is not None and math.isfinite(value)
    except OverflowError:  # a whole number that is larger than any float
        return False


def divide(value: float, by: float) -> float | None:
    """The quotient of two measured numbers, or None where there is no finite one."""
    try:
        quotient = value / by
    except (ZeroDivisionError, OverflowError):
        return None
    return quotient if is_known(quotient) else None


def format_digits(value: float, count: int = 3) -> str:
    """At least `format_count` significant digits: 0.0123, 1.23, 12.3, 123, 1234.

    With an exponent far from one, 3e-7 or 1.23e12.
    """
    if not is_known(value):
        return MISSING
    if abs(value) < 1e-4:
        return format_tiny(value)
    if abs(value) >= _HUGE:
        return _short_exponent(f"{value:.{count - 1}e}")
    decimals = max(0, count - 1 - math.floor(math.log10(abs(value))))
    rounded = round(value, decimals)
    if rounded and math.floor(math.log10(abs(rounded))) > math.floor(math.log10(abs(value))):
        decimals = max(0, decimals - 1)  # 9.996 is 10.0, not 10.00
    return f"{rounded:.{decimals}f}"


def format_fixed(value: float | None, decimals: int) -> str:
    """1.50, 12.00: with so many decimals, as figures of a column or an interval have them."""
    if value is None or not is_known(value):
        return MISSING
    return f"{value:.{decimals}f}" if abs(value) < _HUGE else format_digits(value)


def format_plain(value: float | None) -> str:
    """0.01, 1e-5, 12.5: a number as a recipe has it, six digits at most."""
    if value is None or not is_known(value):
        return MISSING
    return _short_exponent(f"{value + 0.0:.6g}")  # + 0.0 turns -0.0 into 0.0


def format_tiny(value: float | None) -> str:
    """3e-16: only the magnitude matters."""
    if value is None or not is_known(value):
        return MISSING
    return "0" if value == 0 else _short_exponent(f"{value:.0e}")


def format_share(value: float | None) -> str:
    """0.382 -> '38.2 %'. Never rounded to 0 or 100 when it is neither."""
    if value is None or not is_known(value):
        return MISSING
    if value < 0:
        return _negate(format_share(-value))
    if value >= _HUGE:
        return _huge_percentage(value)
    percent = 100 * value + 0.0
    if percent in (0, 100):
        return f"{percent:.0f} %"
    if percent < 0.1:
        return f"{format_digits(percent, 1)} %" if percent >= 0.01 else "< 0.01 %"
    for decimals in (1, 2, 3, 4):
        text = f"{percent:.{decimals}f}"
        if float(text) != 100:
            return f"{text} %"
    return "> 99.99 %" if percent < 100 else "> 100 %"


def format_accuracy(value: float | None) -> str:
    """0.9753 -> '97.53 %': two decimals, since test sets of ten thousand are common."""
    if value is None or not is_known(value):
        return MISSING
    return f"{100 * value + 0.0:.2f} %" if abs(value) < _HUGE else _huge_percentage(value)


def format_points(value: float | None) -> str:
    """-0.0031 -> '-0.31 pp': a signed difference of two shares in percentage points."""
    if value is None or not is_known(value):
        return MISSING
    number = f"{100 * value:.2f}" if abs(value) < _HUGE else _huge_percentage(value).removesuffix(" %")
    return f"{add_sign(number)} pp"


def metric(value: float | None, percent: bool) -> str:
    """A figure that models are judged by: 0.9753 -> '97.53 %' where it is a share, 35.3412 -> '35.34'
    otherwise."""
    if percent:
        return format_accuracy(value)
    return MISSING if value is None or not is_known(value) else format_digits(value, 4)


def metric_change(value: float | None, percent: bool) -> str:
    """The signed difference of two such figures: '-0.31 pp', or '+1.204' in the figure's own unit."""
    return format_points(value) if percent else add_sign(metric(value, percent=False))


def drop_zeros(text: str) -> str:
    """'97.50 %' -> '97.5 %': without the zeros that a column of figures needs and a sentence does not."""
    number, space, unit = text.partition(" ")
    decimal = "." in number and "e" not in number
    return f"{number.rstrip('0').rstrip('.') if decimal else number}{space}{unit}"


def format_count(value: float | None) -> str:
    """431080 -> '431 k'; below a thousand the number itself."""
    if value is None or not is_known(value):
        return MISSING
    for factor, suffix in _SUFFIXES:
        if abs(value) >= 0.9995 * factor:  # 999.6 k is 1.00 M
            return f"{format_digits(value / factor)} {suffix}"
    return f"{int(value)}" if float(value).is_integer() else format_digits(value)


def format_size(value: float | None, like: str = "") -> str:
    """1724320 -> '1.64 MiB'; like '500kB', which counts in thousands, '1.72 MB'."""
    if value is None or not is_known(value):
        return MISSING
    for factor, suffix in _DECIMAL if like.endswith(("kB", "MB", "GB")) else _BINARY:
        if abs(value) >= factor:
            return f"{format_digits(value / factor)} {suffix}"
    return f"{round(value)} B"


def format_milliseconds(value: float | None) -> str:
    """0.01234 -> '12.3 us', 1.2345 -> '1.23 ms', 1234.5 -> '1.23 s'."""
    if value is None or not is_known(value):
        return MISSING
    if abs(value) >= 1000:
        return f"{format_digits(value / 1000)} s"
    return f"{format_digits(value * 1000)} us" if 0 < abs(value) < 0.1 else f"{format_digits(value)} ms"


def format_seconds(value: float | None) -> str:
    """0.51 s, 12.3 s, 2 min 05 s, 1 h 02 min."""
    if value is None or not is_known(value):
        return MISSING
    if value < 59.95:
        return f"{value:.1f} s" if value >= 1 else f"{format_digits(value, 2)} s"
    if value >= 3600 * _HUGE:
        return f"{format_digits(value / 3600)} h"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def format_times(value: float | None) -> str:
    """1.9 -> '1.90x'."""
    return MISSING if value is None or not is_known(value) else f"{format_digits(value)}x"


def space_unit(text: str) -> str:
    """'25%' -> '25 %': a recipe's quantity the way a report shows its own."""
    number = text.rstrip("%abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    return f"{number} {text[len(number) :]}" if number and number != text else text


def add_sign(text: str) -> str:
    """'1.2 M' -> '+1.2 M'; what rounds to zero has no sign."""
    if text == MISSING:
        return text
    if text.startswith(("<", ">")):  # '< 0.01 %' is a bound, and has a sign where it is below zero
        return text
    number = text.split()[0].lstrip("-").rstrip("x")
    if not number.strip("0."):
        return text.lstrip("-")
    return text if text.startswith("-") else f"+{text}"


def list_few(names: tuple[str, ...], most: int = 3) -> str:
    """'a, b, c and 4 more'."""
    if len(names) <= most + 1:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most} more"


def count_noun(number: int, noun: str) -> str:
    """'1 layer', '3 layers'."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _short_exponent(text: str) -> str:
    """'1e-05' -> '1e-5', '1.2e+12' -> '1.2e12'."""
    return text.replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")


def _huge_percentage(value: float) -> str:
    """1e307 -> '1.00e309 %': exact where a hundred times the number is no float any more."""
    return f"{_short_exponent(f'{100 * Decimal(value):.2e}')} %"


def _negate(text: str) -> str:
    """'38.2 %' -> '-38.2 %', '< 0.01 %' -> '> -0.01 %'."""
    if text.startswith("< "):
        return f"> -{text[2:]}"
    return f"< -{text[2:]}" if text.startswith("> ") else f"-{text}"
