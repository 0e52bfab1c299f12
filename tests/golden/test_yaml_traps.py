"""Traps of YAML and of typing: each is named at its place, with its exact text."""

from pathlib import Path

import pytest

from sparsify.errors import RecipeError
from sparsify.recipe import load

RECIPE = """\
version: 1
title: Sample
model: {build: sparsify.models.digits_cnn}
data: {source: digits, validation: 10%}
targets: {"a.b": {kind: cpu}}
budget: {macs: 40%}
rules:
  - layers: "conv*"
    group: filter
stages:
  - {kind: cut}
"""
NO_BREAK = "\u00a0"
IE = "\u0435"
"""A Cyrillic letter that looks like e."""

COUNT = "expected a share such as 40% or a count such as 300M"
SIZE = "expected a share such as 40% or a size such as 8MiB or 500kB"

TRAPS: dict[str, tuple[str, str, str]] = {
    "no-break space after a key": (
        "title: Sample",
        f"title:{NO_BREAK}Sample",
        "2:7: U+00A0 (no-break space) where YAML wants a plain space; write a plain space",
    ),
    "no-break space after a dash": (
        "  - layers",
        f"  -{NO_BREAK}layers",
        "8:4: U+00A0 (no-break space) where YAML wants a plain space; write a plain space",
    ),
    "no-break space in a key": (
        "budget:",
        f"budget{NO_BREAK}:",
        f"6:1: budget{NO_BREAK}: unknown key; it holds U+00A0 (no-break space), not a plain space; "
        "did you mean 'budget'?",
    ),
    "no-break space in a share": (
        "40%",
        f"40{NO_BREAK}%",
        f"6:16: budget.macs: {COUNT}, not '40\\xa0%'; it holds U+00A0 (no-break space), not a plain space; "
        "write '40%'",
    ),
    "space without a width": (
        "group: filter",
        "group: fil\u200bter",
        "9:12: rules.0.group: unknown group 'fil\\u200bter'; "
        "it holds U+200B (zero width space), which cannot be seen; did you mean 'filter'?",
    ),
    "Cyrillic letter in a key": (
        "rules:",
        f"rul{IE}s:",
        f"7:1: rul{IE}s: unknown key; it holds U+0435 (Cyrillic small letter ie), not 'e'; "
        "did you mean 'rules'?",
    ),
    "Cyrillic letter in a kind": (
        "kind: cpu",
        "kind: \u0441pu",
        "5:25: targets.a.b.kind: unknown kind '\u0441pu'; "
        "it holds U+0441 (Cyrillic small letter es), not 'c'; did you mean 'cpu'?",
    ),
    "minus sign": (
        "budget: {macs: 40%}",
        "seed: \u22121",
        "6:7: seed: expected a whole number, found the text '\u22121'; it holds U+2212 (minus sign), not '-'",
    ),
    "wide colon": (
        "title: Sample",
        "title\uff1aSample",
        "2:6: U+FF1A (fullwidth colon) where YAML wants ':'; write ':'",
    ),
    "typographic quote": (
        "title: Sample",
        "title: \u201cfirst: second\u201d",
        "2:8: U+201C (left double quotation mark) where YAML wants '\"'; write '\"'",
    ),
    "dash of a list": (
        "  - layers",
        "  \u2013 layers",
        "8:3: U+2013 (en dash) where YAML wants '-'; write '-'",
    ),
    "misspelt kind": ("{kind: cut}", "{knd: cut}", "11:6: stages.0.knd: unknown key; did you mean 'kind'?"),
    "another word for kind": (
        "{kind: cpu}",
        "{type: cpu}",
        "5:19: targets.a.b.type: unknown key; did you mean 'kind'?",
    ),
    "text after an end": (
        "stages:\n",
        "...\nstages:\n",
        "10:1: '...' ends a YAML document, and the recipe goes on; remove this line",
    ),
    "directive in the middle": (
        "  - {kind: cut}\n",
        "  - {kind: cut}\n%YAML 1.2\n",
        "12:1: a '%' line is a directive of YAML; remove this line, or quote the text",
    ),
    "plain count": (
        "{macs: 40%}",
        "{params: 47113}",
        f"6:18: budget.params: {COUNT}, not the bare number 47113; write '47.113k'",
    ),
    "plain bytes": (
        "{macs: 40%}",
        "{bytes: 800000}",
        f"6:17: budget.bytes: {SIZE}, not the bare number 800000; write '800000B'",
    ),
    "fraction": ("40%", "0.4", f"6:16: budget.macs: {COUNT}, not the bare number 0.4; write '40%'"),
    "no digit before the point": ("40%", ".5%", f"6:16: budget.macs: {COUNT}, not '.5%'; write '0.5%'"),
    "space before the unit": ("40%", "40 %", f"6:16: budget.macs: {COUNT}, not '40 %'; write '40%'"),
    "decimal comma": ("40%", '"12,5%"', f"6:16: budget.macs: {COUNT}, not '12,5%'; write '12.5%'"),
    "unit in small letters": (
        "{macs: 40%}",
        "{bytes: 8mb}",
        f"6:17: budget.bytes: {SIZE}, not '8mb'; write '8MB'",
    ),
    "infinite count": ("40%", ".inf", f"6:16: budget.macs: {COUNT}, not the bare number inf"),
    "no number": ("40%", ".nan", f"6:16: budget.macs: {COUNT}, not the bare number nan"),
    "unclear number": ("40%", "40", f"6:16: budget.macs: {COUNT}, not the bare number 40"),
    "blank title": ("Sample", '" \\n "', "2:8: title: expected some text, found only blanks"),
    "slow pattern beside a back reference": (
        '"conv*"',
        "re:(a+)+\\1b",
        "8:13: rules.0.layers: 're:(a+)+\\\\1b': repeats or choices inside repeats, beside a back reference "
        "or an atomic group, may take for ever; list several patterns",
    ),
}


@pytest.mark.parametrize(("before", "after", "expected"), TRAPS.values(), ids=TRAPS)
def test_a_trap(
    before: str, after: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert before in RECIPE
    Path("recipe.yaml").write_text(RECIPE.replace(before, after, 1), encoding="utf-8")
    with pytest.raises(RecipeError) as raised:
        load("recipe.yaml")
    assert str(raised.value) == f"recipe.yaml:{expected}"


def test_other_alphabets_are_welcome(tmp_path: Path) -> None:
    """In titles and comments, and where nothing is wrong."""
    title = "\u041c\u043e\u0434\u0435\u043b\u044c \u2013 \u201csmall\u201d"
    (tmp_path / "recipe.yaml").write_text(
        RECIPE.replace("Sample", f"{title} # a:{NO_BREAK}b"), encoding="utf-8"
    )
    assert load(tmp_path / "recipe.yaml").recipe.title == title


@pytest.mark.parametrize("path", ["targets.a.b.threads", 'targets."a.b".threads', "targets.'a.b'.threads"])
def test_a_key_with_a_dot_is_set(path: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    target = load(tmp_path / "recipe.yaml", [f"{path}=3"]).recipe.targets["a.b"]
    assert getattr(target, "threads", None) == 3


@pytest.mark.parametrize("path", ['budget.latency."a.b"', "budget.latency.a.b"])
def test_a_key_with_a_dot_is_made(path: str, tmp_path: Path) -> None:
    """In quotes, or without them where a target of the recipe is called so."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    latency = load(tmp_path / "recipe.yaml", [f"{path}=2ms"]).recipe.budget
    assert latency is not None
    assert {name: str(limit) for name, limit in latency.latency.items()} == {"a.b": "2ms"}


@pytest.mark.parametrize("times", [10, pytest.param(40, marks=pytest.mark.nightly)])
def test_thousands_of_rules(tmp_path: Path, times: int) -> None:
    """Ten thousand by night, a quarter of them by day."""
    rules = "".join(f"  - layers: conv{i}\n    group: filter\n" for i in range(250))
    text = RECIPE.replace('  - layers: "conv*"\n    group: filter\n', rules * times)
    (tmp_path / "recipe.yaml").write_text(text.replace("conv", "layer.conv"))
    with pytest.raises(RecipeError) as raised:
        load(tmp_path / "recipe.yaml")
    assert len(raised.value.problems) == 250 * (times - 1)
    assert str(raised.value.problems[-1]).endswith(
        f"rules.{250 * times - 1}: claims the same layers and group 'filter' as rules.249; "
        "remove one of the two, or write 'override: true' in the later one"
    )
