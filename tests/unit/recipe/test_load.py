"""Reading recipes: scalars, places, variables, parents, overrides, files that are none."""

import os
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparsify.errors import RecipeError
from sparsify.recipe import Loaded, Place, dump, load
from sparsify.recipe.yaml_scalars import read_scalar
from sparsify_schemas.recipe import Recipe

SMALL = """\
version: 1
title: Sample
rules:
  - layers: "conv*"
    group: filter
    sparsity: 50%
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(text: str, name: str = "recipe.yaml") -> str:
    Path(name).parent.mkdir(exist_ok=True, parents=True)
    Path(name).write_text(text, encoding="utf-8")
    return name


def read(text: str, *overrides: str) -> Loaded:
    return load(write(text), overrides)


def said(source: Any, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load(source, overrides)
    return [str(problem) for problem in caught.value.problems]


def memory_of(work: Callable[[], list[str]]) -> tuple[list[str], int]:
    """What came of it, and the bytes that it held at most."""
    tracemalloc.start()
    try:
        found = work()
        return found, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def calls_of(work: Callable[[], object]) -> int:
    """Calls of functions, which count the steps of an algorithm on any machine."""
    count = 0

    def seen(frame: object, event: str, given: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(seen)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2:4", "2:4"),
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        (".5", 0.5),
        ("5.", 5.0),
        ("no", "no"),
        ("on", "on"),
        ("yes", "yes"),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("-3", -3),
        ("+3", 3),
        ("1_000", "1_000"),
        ("0b1", "0b1"),
        ("2024-01-01", "2024-01-01"),
        (".inf", float("inf")),
        ("-.INF", float("-inf")),
        ("~", None),
        ("", None),
        ("null", None),
        ("True", True),
        ("false", False),
        ("tRue", "tRue"),
        ("1e", "1e"),
        ("=", "="),
    ],
)
def test_plain_scalars_follow_the_core_schema_of_yaml_1_2(text: str, value: object) -> None:
    assert read_scalar(text) == value
    assert type(read_scalar(text)) is type(value)


def test_quoted_scalars_are_text() -> None:
    loaded = read(SMALL.replace("Sample", "'5'"))
    assert loaded.recipe.title == "5"


def test_names_of_groups_are_canonical() -> None:
    assert read(SMALL.replace("filter", "out_channel")).recipe.rules[0].group == "filter"


def test_a_problem_points_at_the_nearest_entry_that_is_written() -> None:
    loaded = read(SMALL)
    assert (
        str(loaded.positions.problem("rules.0.layers", "matches no layer", "look again"))
        == "recipe.yaml:4:13: rules.0.layers: matches no layer; look again"
    )
    assert str(loaded.positions.problem("rules.0.penalty.strength", "x")).startswith(
        "recipe.yaml:4:5: rules.0.penalty"
    )
    assert str(loaded.positions.problem("budget.macs", "x")) == "recipe.yaml:1:1: budget.macs: x"
    assert loaded.positions.places[("rules",)] == Place("recipe.yaml", 3, 1)


def test_aliases_repeat_a_value() -> None:
    text = (
        "version: 1\n"
        "title: t\n"
        "rules:\n"
        "  - {layers: a, group: filter, keep: &few {at_least: 2}}\n"
        "  - {layers: b, group: filter, keep: *few}\n"
    )
    assert [rule.keep.at_least for rule in read(text).recipe.rules] == [2, 2]


def test_a_problem_in_an_alias_points_at_the_alias_or_into_the_anchor() -> None:
    text = (
        "version: 1\n"
        "title: t\n"
        "rules:\n"
        "  - {layers: a, group: filter, keep: &few {at_least: 0}}\n"
        "  - {layers: b, group: filter, keep: *few}\n"
    )
    assert [line.partition(": ")[0] for line in said(write(text))] == ["recipe.yaml:4:54", "recipe.yaml:4:54"]


class TestVariables:
    TEXT = SMALL + (
        "data: {source: digits}\n"
        "stages:\n"
        '  - {kind: train, epochs: "${epochs}", optimizer: {kind: adam, lr: "${rate}"}}\n'
        "  - {kind: cut}\n"
    )

    def test_a_text_that_is_one_expression_becomes_its_value(self) -> None:
        loaded = read('vars: {half: 3, rate: 1e-3, epochs: "${half * 2}"}\n' + self.TEXT)
        assert loaded.data["stages"][0] == {
            "kind": "train",
            "epochs": 6,
            "optimizer": {"kind": "adam", "lr": 1e-3},
        }
        assert "vars" not in loaded.data

    def test_an_expression_inside_a_text_is_written_out(self) -> None:
        loaded = read(
            "vars: {share: 40, name: LeNet, on: true, small: 1e-7}\n"
            + SMALL.replace("50%", '"${share + 10}%"').replace(
                "Sample", '"${name} ${on} ${small} ${share / 2}"'
            )
        )
        assert loaded.data["rules"][0]["sparsity"] == "50%"
        assert loaded.recipe.title == "LeNet true 1e-07 20"

    @pytest.mark.parametrize(
        ("expression", "value"),
        [
            ("7 // 2", 3),
            ("7 % 4", 3),
            ("2 ** 10", 1024),
            ("2 ** -1 * 4", 2.0),
            ("-(1 - 3) * +2", 4),
            ("min(4, 2, 3)", 2),
            ("max(1.5, 1)", 1.5),
            ("round(2.567, 2)", 2.57),
            ("round(2.4)", 2),
            ("int(9 / 2)", 4),
        ],
    )
    def test_arithmetic(self, expression: str, value: float) -> None:
        loaded = read(SMALL + 'model: {build: a.b, args: {x: "${' + expression + '}"}}\n')
        assert loaded.data["model"]["args"]["x"] == value
        assert type(loaded.data["model"]["args"]["x"]) is type(value)

    @pytest.mark.parametrize(
        "expression",
        [
            "().__class__",
            "[1][0]",
            "lambda: 1",
            "1 if 1 else 2",
            "'a' * 9",
            "f''",
            "x := 1",
            "10 ** 18",
            "2 ** 2 ** 99",
            "9.0 ** 999",
            "(-8) ** 0.5",
            "1 << 99",
            "1e308 * 10",
            "int(1e308 * 1e10)",
            "round(1, -99999999999)",
            "min()",
            "max(1, key=2)",
            "int(*a)",
            "True + 1",
            "1j",
            "...",
            "1" + "+1" * 200,
            "(" * 150 + "1" + ")" * 150,
            "- " * 190 + "1",
            "\x0c",
        ],
    )
    def test_everything_else_is_refused(self, expression: str) -> None:
        escaped = expression.replace("\x0c", "\\f")
        (problem,) = said(write(SMALL + 'model: {build: a.b, args: {x: "${' + escaped + '}"}}\n'))
        assert problem.startswith("recipe.yaml:7:31: model.args.x: ")

    def test_two_dollars_stand_for_one(self) -> None:
        assert (
            read(SMALL.replace("Sample", '"$${x} costs $5 or $$$${y}"')).recipe.title
            == "${x} costs $5 or $$${y}"
        )

    def test_growing_texts_are_refused_at_once(self) -> None:
        names = "\n".join(f'  a{i}: "' + f"${{a{i - 1}}}" * 10 + '"' for i in range(1, 20))
        written = write(f"vars:\n  a0: lol\n{names}\n" + SMALL.replace("Sample", '"${a19}"'))
        problems, most = memory_of(lambda: said(written))
        assert "more than 4000 characters" in problems[0]
        assert most < 2**22, "the text would have 3e19 letters, and 3e6 after the first six names"

    def test_a_long_chain_is_refused(self) -> None:
        names = ", ".join(f'a{i}: "${{a{i + 1}}}"' for i in range(2000))
        assert any(
            "in a row" in line
            for line in said(write("vars: {" + names + "}\n" + SMALL.replace("Sample", '"${a0}"')))
        )

    def test_a_name_must_be_a_name(self) -> None:
        problems = said(write('vars: {"a b": 1, max: 2}\n' + SMALL.replace("Sample", '"${max}"')))
        assert "recipe.yaml:1:23: vars.max: 'max' is a function; give the variable another name" in problems
        assert any(
            line.startswith("recipe.yaml:1:15: vars.a b: 'a b' is not a name for a variable")
            for line in problems
        )


class TestExtends:
    def test_mappings_merge_and_lists_replace(self) -> None:
        write(
            SMALL + "budget: {macs: 40%, params: 30%}\nmodel: {build: a.b, args: {x: [1, 2], y: 1}}\n",
            "base.yaml",
        )
        loaded = read(
            "extends: base.yaml\ntitle: Child\nbudget: {macs: 20%, params: null}\nmodel: {args: {x: [3]}}\n"
        )
        assert loaded.recipe.title == "Child"
        assert loaded.data["budget"] == {"macs": "20%", "params": None}
        assert loaded.data["model"] == {"build": "a.b", "args": {"x": [3], "y": 1}}
        assert "extends" not in loaded.data

    def test_places_point_into_the_file_that_wrote_them(self) -> None:
        write(SMALL.replace("50%", "150%"), "parents/base.yaml")
        write("extends: ../parents/base.yaml\nseed: -1\n", "children/child.yaml")
        assert said("children/child.yaml") == [
            "children/child.yaml:2:7: seed: expected at least 0, found the number -1",
            "parents/base.yaml:6:15: rules.0.sparsity: expected a share between 0% and 100%, not '150%'",
        ]

    def test_grandparents(self) -> None:
        write(SMALL, "a/base.yaml")
        write("extends: ../a/base.yaml\nseed: 1\n", "b/middle.yaml")
        assert read("extends: b/middle.yaml\ntitle: C\n").recipe.seed == 1

    def test_circle(self) -> None:
        write("extends: recipe.yaml\n", "other.yaml")
        assert said(write("extends: other.yaml\n")) == [
            "other.yaml:1:10: extends: goes round in a circle: recipe.yaml -> other.yaml -> recipe.yaml"
        ]
        assert said(write("extends: ./recipe.yaml\n")) == [
            "recipe.yaml:1:10: extends: goes round in a circle: recipe.yaml -> recipe.yaml"
        ]

    def test_missing_parent(self) -> None:
        write(SMALL, "base.yaml")
        assert said(write("extends: bse.yaml\ntitle: 3\n")) == [
            "recipe.yaml:1:10: extends: bse.yaml: no such file; did you mean 'base.yaml'?"
        ]

    def test_broken_parent(self) -> None:
        write("title: 'x\n", "base.yaml")
        assert said(write("extends: base.yaml\n")) == [
            "base.yaml:1:8: a quote that is never closed; close it at the end of the text"
        ]

    @pytest.mark.parametrize(
        ("value", "found"),
        [
            ("3", "the number 3"),
            ("[a.yaml, b.yaml]", "a list"),
            ("", "nothing"),
            ("''", "an empty text"),
            (r'"\0"', r"the text '\x00'"),
        ],
    )
    def test_no_file_name(self, value: str, found: str) -> None:
        place = "recipe.yaml:1:9" if value == "" else "recipe.yaml:1:10"
        assert said(write(f"extends: {value}\n")) == [
            f"{place}: extends: expected one file name, found {found}"
        ]

    def test_an_inherited_variable_may_stay_unused(self) -> None:
        write("vars: {share: 50, more: 1}\n" + SMALL.replace("50%", '"${share}%"'), "base.yaml")
        child = "extends: base.yaml\nrules: [{layers: fc, protect: true}]\n"
        assert read(child).recipe.rules[0].protect
        assert said(write("vars: {share: 3}\n" + child)) == [
            (
                "recipe.yaml:1:8: vars.share: unused variable 'share'; "
                "write ${share} where it belongs, or remove it"
            )
        ]

    def test_a_child_changes_a_variable_of_its_parent(self) -> None:
        write("vars: {share: 50}\n" + SMALL.replace("50%", '"${share}%"'), "base.yaml")
        assert read("extends: base.yaml\nvars: {share: 20}\n").data["rules"][0]["sparsity"] == "20%"


class TestOverrides:
    TEXT = "vars: {share: 50}\n" + SMALL.replace("50%", '"${share}%"')

    @pytest.mark.parametrize(
        "override", ["share=20", "vars.share=20", "rules.0.sparsity=20%", 'rules.0.sparsity="${share - 30}%"']
    )
    def test_a_variable_by_either_name_or_the_value_itself(self, override: str) -> None:
        assert read(self.TEXT, override).data["rules"][0]["sparsity"] == "20%"

    def test_keys_that_the_file_leaves_out(self) -> None:
        loaded = read(
            self.TEXT,
            "budget.macs=30%",
            "rules.0.penalty={kind: l1, strength: 1e-3}",
            "seed=0x10",
            "targets.here.kind=cpu",
            "title=yes",
        )
        assert loaded.data["budget"] == {"macs": "30%"}
        assert loaded.recipe.rules[0].penalty is not None
        assert (loaded.recipe.seed, loaded.recipe.title, loaded.recipe.targets["here"].kind) == (
            16,
            "yes",
            "cpu",
        )

    def test_later_ones_win_and_null_clears(self) -> None:
        assert read(self.TEXT, "budget.macs=30%", "budget.macs=20%").data["budget"] == {"macs": "20%"}
        assert read(self.TEXT, "reference=x", "reference=").recipe.reference is None

    @pytest.mark.parametrize(
        ("override", "expected"),
        [
            ("titel=x", "--set: titel: unknown key 'titel'; did you mean 'title'?"),
            ("shares=3", "--set: shares: unknown key 'shares'; did you mean 'share'?"),
            ("vars.shar=3", "--set: vars.shar: no such variable; did you mean 'share'?"),
            ("vars=3", "--set: vars: one variable at a time; such as --set vars.epochs=3"),
            ("extends=other.yaml", "--set: extends: cannot be set; write it in a recipe"),
            ("budget.mac=3%", "--set: budget.mac: unknown key; did you mean 'macs'?"),
            (
                "rules.0.penalty.strenght=3",
                (
                    "--set: rules.0.penalty: missing key 'kind'; one of group_lasso, l1, l2, gsm, "
                    "sensitivity, bn_scale, growing_l2, agp, dns, l0, variational_dropout"
                ),
            ),
            ("rules.3.layers=x", "--set: rules.3: no such entry; 'rules' is a list with one entry, rules.0"),
            ("rules.x.layers=x", "--set: rules.x: no such entry; 'rules' is a list with one entry, rules.0"),
            (
                "rules.-1.layers=x",
                "--set: rules.-1: no such entry; 'rules' is a list with one entry, rules.0",
            ),
            ("title.x=1", "--set: title.x: 'title' is the text 'Sample' and has no keys; set it as a whole"),
            ("seed", "--set: expected path.to.key=value, found 'seed'; such as --set stages.0.epochs=3"),
            (
                "rules..0=1",
                "--set: expected path.to.key=value, found 'rules..0=1'; such as --set stages.0.epochs=3",
            ),
            ("seed=x", "--set: seed: expected a whole number, found the text 'x'"),
            ("title=[a", "--set: title: '[' is never closed; add a ']'"),
            (
                "title={a: b: c}",
                "--set: title: expected ',' or '}', but got ':'; check brackets, commas and quotes",
            ),
            (
                "title=a: b: c",
                (
                    "--set: title: a ':' is not expected here; quote a text that holds ': ', "
                    "and indent keys of one mapping alike"
                ),
            ),
            (
                "rules.0.layers=*.conv",
                (
                    "--set: rules.0.layers: unquoted '*.conv'; YAML reads a leading '*' as an alias; "
                    'quote it: "*.conv"'
                ),
            ),
            ("title=\x00", "--set: title: the character U+0000 is not allowed in YAML"),
        ],
    )
    def test_complaints(self, override: str, expected: str) -> None:
        assert said(write(self.TEXT), override) == [expected]

    def test_a_variable_that_an_override_makes_needless_is_no_mistake(self) -> None:
        assert read(self.TEXT, "rules.0.sparsity=1%").recipe.rules[0].sparsity is not None

    def test_a_loaded_recipe_keeps_its_places(self) -> None:
        loaded = load(read(self.TEXT), ["seed=3"])
        assert (loaded.recipe.seed, loaded.positions.file) == (3, "recipe.yaml")
        assert str(loaded.positions.problem("rules.0.layers", "x")) == "recipe.yaml:5:13: rules.0.layers: x"


class TestSources:
    def test_loaded_comes_back_as_it_is(self) -> None:
        loaded = read(SMALL)
        assert load(loaded) is loaded

    def test_a_mapping(self) -> None:
        loaded = load(
            {
                "version": 1,
                "title": "${name}",
                "vars": {"name": "t"},
                "rules": ({"layers": "x", "protect": True},),
            }
        )
        assert (loaded.positions.file, loaded.recipe.title) == ("<recipe>", "t")
        assert str(loaded.positions.problem("rules.0", "x")) == "<recipe>: rules.0: x"

    def test_a_mapping_that_holds_values_of_the_language(self) -> None:
        rule = read(SMALL).recipe.rules[0]
        assert load({"version": 1, "title": "t", "rules": [rule]}).recipe.rules == (rule,)

    def test_a_recipe_keeps_text_that_looks_like_a_variable(self) -> None:
        recipe = read(SMALL.replace("Sample", '"$${x}"')).recipe
        assert load(recipe).recipe == recipe
        assert load(recipe, ["seed=1"]).recipe.title == "${x}"

    @pytest.mark.parametrize(
        ("source", "expected"),
        [
            (
                {"version": 1, "title": 1, "rules": []},
                "<recipe>: title: expected text, found the number 1; quote it",
            ),
            ({"version": 1, 2: 3}, "<recipe>: a key must be text, found the number 2"),
            (
                {"title": {1, 2}},
                (
                    "<recipe>: title: a recipe cannot hold a set; use mappings, lists, text, numbers, "
                    "true, false and null"
                ),
            ),
            (
                {"title": "\ud800"},
                "<recipe>: title: half a character (a lone surrogate); write the whole character",
            ),
            (
                {"seed": 10**4000},
                (
                    "<recipe>: seed: a recipe cannot hold a huge number; use mappings, lists, text, "
                    "numbers, true, false and null"
                ),
            ),
            ([1], "<recipe>: expected a file, a mapping or a recipe, found a list"),
            (None, "<recipe>: expected a file, a mapping or a recipe, found nothing"),
        ],
    )
    def test_what_is_no_recipe(self, source: object, expected: str) -> None:
        assert expected in said(source)

    def test_a_mapping_that_contains_itself(self) -> None:
        knot: dict[str, object] = {"title": "t"}
        knot["model"] = knot
        assert "nested more than 64 levels deep" in said(knot)[0]

    def test_mapping_extends_a_file_of_the_working_folder(self) -> None:
        write(SMALL, "base.yaml")
        assert load({"extends": "base.yaml", "seed": 4}).recipe.seed == 4


class TestFiles:
    def test_missing(self) -> None:
        write(SMALL)
        assert said("recipes.yaml") == ["recipes.yaml: no such file; did you mean 'recipe.yaml'?"]
        assert said("nowhere/x.yaml") == ["nowhere/x.yaml: no such file"]

    def test_folder(self, tmp_path: Path) -> None:
        assert said(tmp_path) == [f"{tmp_path}: a folder, not a recipe file"]

    @pytest.mark.parametrize(
        ("data", "expected"),
        [
            (
                b"\x80\x02}q\x00X\x05",
                "recipe.yaml: a binary file, not a recipe; recipes are YAML text in UTF-8",
            ),
            (
                SMALL.encode("utf-16"),
                "recipe.yaml: a binary file, not a recipe; recipes are YAML text in UTF-8",
            ),
            (
                "version: 1\ntitle: é\n".encode("latin-1"),
                "recipe.yaml:2:8: the byte 0xe9 is not UTF-8; save the recipe as UTF-8 text",
            ),
            (b"\xef\xbb\xbf", "recipe.yaml: an empty recipe; `sparsify init` writes one to start from"),
        ],
    )
    def test_not_text(self, data: bytes, expected: str) -> None:
        Path("recipe.yaml").write_bytes(data)
        assert said("recipe.yaml") == [expected]

    def test_huge_files_are_refused_before_they_are_read(self) -> None:
        with Path("recipe.yaml").open("wb") as stream:
            stream.truncate(50 * 2**20)
        problems, most = memory_of(lambda: said("recipe.yaml"))
        assert problems == ["recipe.yaml: too large for a recipe: more than 1024 KiB"]
        assert most < 2**20

    def test_a_device_without_end(self) -> None:
        assert said("/dev/zero") == [
            "/dev/zero: a pipe or a device, not a recipe file; write the recipe to a file"
        ]

    def test_names_that_are_none(self) -> None:
        assert said("a\0b")[0].startswith("a\0b: not a file name")
        assert "cannot be read" in said("x" * 5000)[0]

    @pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads everything")
    def test_unreadable(self) -> None:
        Path(write(SMALL)).chmod(0)
        assert said("recipe.yaml") == ["recipe.yaml: cannot be read: Permission denied"]

    def test_byte_order_mark_and_windows_lines(self) -> None:
        Path("recipe.yaml").write_bytes(b"\xef\xbb\xbf" + SMALL.replace("\n", "\r\n").encode())
        assert load("recipe.yaml").positions.problem("rules.0.layers", "x").line == 4

    def test_the_largest_file_is_read_in_time_linear_in_its_lines(self) -> None:
        assert said(write("a: b\n" * 50_000))
        once, twice = (
            calls_of(lambda lines=lines: said(write("a: b\n" * lines))) for lines in (1_000, 2_000)
        )
        assert twice < 2.2 * once


class TestDump:
    def test_defaults_are_written_out_and_absent_keys_are_not(self) -> None:
        text = dump(read(SMALL).recipe)
        assert "override: false" in text and "multiple_of" not in text
        assert "penalty" not in text

    def test_text_that_looks_like_something_else_is_quoted(self) -> None:
        for title in (
            "no",
            "2:4",
            "1e-4",
            "0o10",
            "010",
            "null",
            "*x",
            "${x}",
            "$${x}",
            "a: b",
            "é\u2028",
            "\x00",
            "<<",
            "=",
            "2024-01-01",
            " x ",
            "\ttab",
            "#",
            "a #b",
            "\U0001f600",
        ):
            recipe = Recipe.model_validate(
                {"version": 1, "title": title, "rules": [{"layers": [title], "protect": True}]}
            )
            assert load(write(dump(recipe))).recipe == recipe

    def test_a_constant_schedule_is_a_number(self) -> None:
        assert "lr: 0.1" in dump(
            read(
                SMALL
                + (
                    "data: {source: digits}\n"
                    "stages: [{kind: train, epochs: 1, optimizer: {kind: sgd, lr: {kind: constant, "
                    "value: 0.1}}}, {kind: cut}]\n"
                )
            ).recipe
        )
