"""Laying out: everything is shown, nothing is wider than it may be, numbers end in one column."""

from hypothesis import given
from hypothesis import strategies as st

from sparsify.formatting.table import (
    Table,
    as_markdown,
    as_text,
    count_cells,
    escape_controls,
    escape_markdown,
    make_columns,
)

words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=30)
TABLE = Table(
    "T",
    make_columns("layer", ">MACs", "why"),
    (("conv1", "1.2 M", "it feeds the network's output"), ("fc", "12 k", "-")),
    ("A note.",),
)


def test_numbers_end_in_one_column() -> None:
    assert as_text([TABLE]).splitlines() == [
        "T",
        "layer   MACs  why",
        "-" * 43,
        "conv1  1.2 M  it feeds the network's output",
        "fc      12 k  -",
        "A note.",
    ]


def test_text_is_wrapped_and_numbers_are_not() -> None:
    assert as_text([TABLE], 26).splitlines()[3:6] == [
        "conv1  1.2 M  it feeds the",
        "              network's",
        "              output",
    ]


def test_two_long_columns_share_what_there_is() -> None:
    table = Table(
        "",
        make_columns("layer", "with"),
        (("stage_one.first_convolution.0", "stage_one.first_normalisation.1"),),
    )
    assert as_text([table], 58).splitlines()[2:] == [
        "stage_one.first_convolution.  stage_one.first_",
        "0                             normalisation.1",
    ]


def test_the_heading_of_a_number_is_folded_where_the_table_is_too_wide() -> None:
    table = Table("", make_columns("target", ">runs/fashion-net-for-the-server-3"), (("onnxruntime", "1"),))
    assert as_text([table], 30).splitlines() == [
        "target       runs/fashion-net-",
        "              for-the-server-3",
        "-" * 30,
        "onnxruntime                  1",
    ]


def test_a_long_path_breaks_after_a_dot() -> None:
    table = Table("", make_columns("path", ">n"), (("rules[conv*/filter].penalty.strength", "1"),))
    assert as_text([table], 34).splitlines()[2:] == ["rules[conv*/filter].penalty.     1", "strength"]


def test_a_long_name_breaks_after_an_underscore() -> None:
    table = Table("", make_columns("model", ">n"), (("uniform_width", "1"),))
    assert as_text([table], 13).splitlines()[2:] == ["uniform_    1", "width"]


@given(st.lists(st.tuples(words, words, words), max_size=4), st.integers(60, 120))
def test_no_line_is_wider_than_it_may_be(rows: list[tuple[str, str, str]], width: int) -> None:
    table = Table("title", make_columns("a", "b", "c"), tuple(rows), ("note " * 30,))
    assert all(count_cells(line) <= width for line in as_text([table], width).splitlines())


@given(words)
def test_control_characters_are_shown_not_obeyed(text: str) -> None:
    assert escape_controls(text).isprintable()


def test_an_escape_sequence_cannot_reach_the_terminal() -> None:
    assert escape_controls("a\x1b[31mb\nc\u202e") == "a\\x1b[31mb c\\u202e"


def test_markdown_keeps_its_columns() -> None:
    table = Table("T", make_columns("a", ">b"), (("x|y", "*1*"),))
    assert as_markdown([table]) == "## T\n\n| a | b |\n| --- | ---: |\n| x\\|y | \\*1\\* |"


def test_an_underscore_in_a_word_needs_no_escape() -> None:
    assert escape_markdown("at_least __init__") == "at_least \\_\\_init\\_\\_"
