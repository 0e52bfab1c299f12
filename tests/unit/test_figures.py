"""Numbers in words."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsify import figures


@pytest.mark.parametrize(
    ("show", "value", "text"),
    [
        (figures.share, 0.382, "38.2 %"),
        (figures.share, 1.0, "100 %"),
        (figures.share, 0.9997, "99.97 %"),
        (figures.share, 0.99999999, "> 99.99 %"),
        (figures.share, 0.0004, "0.04 %"),
        (figures.share, 1e-6, "< 0.01 %"),
        (figures.share, 0.0, "0 %"),
        (figures.accuracy, 0.9753, "97.53 %"),
        (figures.points, -0.0031, "-0.31 pp"),
        (figures.points, 0.00001, "0.00 pp"),
        (figures.points, 0.02, "+2.00 pp"),
        (figures.count, 431_080, "431 k"),
        (figures.count, 999_600, "1.00 M"),
        (figures.count, 4_089_184_256, "4.09 G"),
        (figures.count, 999, "999"),
        (figures.size, 1_724_320, "1.64 MiB"),
        (figures.size, 12, "12 B"),
        (figures.milliseconds, 0.01234, "12.3 us"),
        (figures.milliseconds, 1.2345, "1.23 ms"),
        (figures.milliseconds, 1234.5, "1.23 s"),
        (figures.seconds, 0.512, "0.51 s"),
        (figures.seconds, 59.97, "1 min 00 s"),
        (figures.seconds, 3725, "1 h 02 min"),
        (figures.times, 1.9, "1.90x"),
        (figures.times, 9.996, "10.0x"),
        (figures.tiny, 3.1e-16, "3e-16"),
        (figures.plain, 1e-5, "1e-5"),
        (figures.plain, 0.1, "0.1"),
    ],
)
def test_examples(show, value: float, text: str) -> None:
    assert show(value) == text


SHOWN = (figures.share, figures.accuracy, figures.points, figures.count, figures.size, figures.milliseconds, figures.seconds, figures.times, figures.tiny, figures.plain)


@pytest.mark.parametrize("show", SHOWN)
@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_what_is_not_known_is_a_dash(show, value: float | None) -> None:
    assert show(value) == "-"


@pytest.mark.parametrize("show", SHOWN)
@given(value=st.floats(0, 1e12))
def test_every_number_is_short_and_has_no_sign_of_its_own(show, value: float) -> None:
    text = show(value)
    assert 0 < len(text) <= 24
    assert not text.startswith("-")


@given(value=st.floats(0.001, 1e14))
def test_counts_are_within_a_percent(value: float) -> None:
    number, _, suffix = figures.count(value).partition(" ")
    assert float(number) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}[suffix] == pytest.approx(value, rel=0.01)


def test_names_beyond_a_few_are_counted() -> None:
    assert figures.few(("a", "b", "c", "d")) == "a, b, c, d"
    assert figures.few(tuple("abcdefg")) == "a, b, c and 4 more"


def test_zeros_that_say_nothing_go() -> None:
    assert [figures.brief(t) for t in ("97.50 %", "-0.30 pp", "100 %", "98.00 %")] == ["97.5 %", "-0.3 pp", "100 %", "98 %"]
    assert [figures.spaced(t) for t in ("25%", "40k", "1e-3", "8MiB")] == ["25 %", "40 k", "1e-3", "8 MiB"]
    assert [figures.signed(t) for t in ("1.2 M", "-1.2 M", "0.00 pp", "-0.00x", "-")] == ["+1.2 M", "-1.2 M", "0.00 pp", "0.00x", "-"]
