"""Regular expressions of layers agree with `re`, and none takes for ever."""

import random
import re
import warnings

import pytest

from sparsify_schemas.selector import selects
from sparsify_schemas.whole_match import explain_refusal, matches_whole

ATOMS = ("a", "b", "[ab]", "[^a]", ".", r"\w", r"\.", "(?i:A)", r"\b", "^", "$", "(?=a)", "(?!b)", "(?<=a)")
REPEATS = ("*", "+", "?", "*?", "+?", "{1,2}", "{2}", "{0,3}", "{2,}?")


def _draw_pattern(chance: random.Random, depth: int) -> str:
    kind = chance.choice(("atom", "join", "branch", "repeat")) if depth else "atom"
    match kind:
        case "join":
            return _draw_pattern(chance, depth - 1) + _draw_pattern(chance, depth - 1)
        case "branch":
            return f"(?:{_draw_pattern(chance, depth - 1)}|{_draw_pattern(chance, depth - 1)})"
        case "repeat":
            return f"({_draw_pattern(chance, depth - 1)}){chance.choice(REPEATS)}"
    return chance.choice(ATOMS)


def test_random_patterns_match_what_re_matches() -> None:
    chance = random.Random(0)
    hits = 0
    for _ in range(600):
        pattern = _draw_pattern(chance, 4)
        assert explain_refusal(pattern) == ""
        for _ in range(4):
            name = "".join(chance.choice("aabb.A") for _ in range(chance.randrange(6)))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                expected = re.fullmatch(pattern, name) is not None
            assert matches_whole(pattern, name) == expected, (pattern, name)
            hits += expected
    assert hits > 200


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+b",
        "(a|a)*b",
        "(a|aa)+c",
        ".*.*.*.*.*.*.*x",
        "((a*)*)*b",
        "(?=(a+)+b)a*",
        "a?" * 60 + "b",
        "(a|a)" * 60,
    ],
)
def test_patterns_that_re_would_never_end(pattern: str) -> None:
    """Each would take `re` more than 2^50 steps on this name."""
    assert not selects((f"re:{pattern}",), "a" * 59 + "!", ())


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        (
            r"(a+)+\1b",
            "repeats or choices inside repeats, beside a back reference or an atomic group, may take for "
            "ever; list several patterns",
        ),
        ("((a{0,5000})+)b", "repeats inside repeats, and one counts beyond 1000; write '*' or '+'"),
        (r"layer(\d)\.conv\1", ""),
        (r"(?:\w+\.)+conv\d", ""),
    ],
)
def test_what_is_refused(pattern: str, why: str) -> None:
    assert explain_refusal(pattern) == why
