"""Numbers in words."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsify.formatting import numbers


@pytest.mark.parametrize(
    ("show", "value", "text"),
    [
        (numbers.format_share, 0.382, "38.2 %"),
        (numbers.format_share, 1.0, "100 %"),
        (numbers.format_share, 0.9997, "99.97 %"),
        (numbers.format_share, 0.99999999, "> 99.99 %"),
        (numbers.format_share, 0.0004, "0.04 %"),
        (numbers.format_share, 1e-6, "< 0.01 %"),
        (numbers.format_share, 0.0, "0 %"),
        (numbers.format_accuracy, 0.9753, "97.53 %"),
        (numbers.format_points, -0.0031, "-0.31 pp"),
        (numbers.format_points, 0.00001, "0.00 pp"),
        (numbers.format_points, 0.02, "+2.00 pp"),
        (numbers.format_count, 431_080, "431 k"),
        (numbers.format_count, 999_600, "1.00 M"),
        (numbers.format_count, 4_089_184_256, "4.09 G"),
        (numbers.format_count, 999, "999"),
        (numbers.format_size, 1_724_320, "1.64 MiB"),
        (numbers.format_size, 12, "12 B"),
        (numbers.format_milliseconds, 0.01234, "12.3 us"),
        (numbers.format_milliseconds, 1.2345, "1.23 ms"),
        (numbers.format_milliseconds, 1234.5, "1.23 s"),
        (numbers.format_seconds, 0.512, "0.51 s"),
        (numbers.format_seconds, 59.97, "1 min 00 s"),
        (numbers.format_seconds, 3725, "1 h 02 min"),
        (numbers.format_times, 1.9, "1.90x"),
        (numbers.format_times, 9.996, "10.0x"),
        (numbers.format_tiny, 3.1e-16, "3e-16"),
        (numbers.format_plain, 1e-5, "1e-5"),
        (numbers.format_plain, 0.1, "0.1"),
    ],
)
def test_examples(show, value: float, text: str) -> None:
    assert show(value) == text


SHOWN = (
    numbers.format_share,
    numbers.format_accuracy,
    numbers.format_points,
    numbers.format_count,
    numbers.format_size,
    numbers.format_milliseconds,
    numbers.format_seconds,
    numbers.format_times,
    numbers.format_tiny,
    numbers.format_plain,
)


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
    number, _, suffix = numbers.format_count(value).partition(" ")
    assert float(number) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}[suffix] == pytest.approx(
        value, rel=0.01
    )


def test_names_beyond_a_few_are_counted() -> None:
    assert numbers.list_few(("a", "b", "c", "d")) == "a, b, c, d"
    assert numbers.list_few(tuple("abcdefg")) == "a, b, c and 4 more"


def test_zeros_that_say_nothing_go() -> None:
    assert [numbers.drop_zeros(t) for t in ("97.50 %", "-0.30 pp", "100 %", "98.00 %")] == [
        "97.5 %",
        "-0.3 pp",
        "100 %",
        "98 %",
    ]
    assert [numbers.space_unit(t) for t in ("25%", "40k", "1e-3", "8MiB")] == [
        "25 %",
        "40 k",
        "1e-3",
        "8 MiB",
    ]
    assert [numbers.add_sign(t) for t in ("1.2 M", "-1.2 M", "0.00 pp", "-0.00x", "-")] == [
        "+1.2 M",
        "-1.2 M",
        "0.00 pp",
        "0.00x",
        "-",
    ]
