"""Laws of reading: what is dumped reads as the same recipe, and no input ends in anything but a recipe or a
RecipeError."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sparsify.errors import RecipeError
from sparsify.recipe import Loaded, dump, load
from sparsify_schemas.base import LARGEST, Spec
from sparsify_schemas.budget import Budget
from sparsify_schemas.criterion import Magnitude, Random, Taylor
from sparsify_schemas.data import Augment, Data, Normalize
from sparsify_schemas.group import Block, Pattern
from sparsify_schemas.model import Input, Model
from sparsify_schemas.penalty import L1, L2, GroupLasso
from sparsify_schemas.recipe import Recipe
from sparsify_schemas.rule import Keep, Rule
from sparsify_schemas.schedule import Constant, Cosine, Cubic, Exponential, Linear, OneShot, Step
from sparsify_schemas.stage import Adam, AdamW, Cut, Sgd, Train
from sparsify_schemas.target import Cpu, Cuda
from sparsify_schemas.units import Amount, Duration, Share, Size

FEW = settings(max_examples=30, deadline=None)

texts = st.text(min_size=1, max_size=20) | st.sampled_from(
    ["no", "2:4", "1e-4", "*conv", "${x}", "$${", "null", "010", "<<", "a: b", "#", " "]
)
positive = st.integers(1, LARGEST)
numbers = st.floats(0, 1e300, allow_nan=False)
above_zero = st.floats(1e-300, 1e300)
below_one = st.floats(0, 1, exclude_max=True)
amounts = st.floats(0, 1e6, exclude_min=True)
shares = st.builds(Share, st.floats(0, 100), st.just("%"))
left = shares.filter(lambda share: share.value > 0)
durations = st.builds(Duration, st.floats(1e-6, 1e6), st.sampled_from(Duration.UNITS))
ends = st.builds(Duration, st.floats(2e6, 3e6), st.sampled_from(Duration.UNITS))

windows = {"from_": numbers, "to": numbers, "start": durations, "end": ends, "every": durations}
schedules = st.one_of(
    st.builds(Constant, kind=st.just("constant"), value=numbers),
    st.builds(Linear, kind=st.just("linear"), **windows),
    st.builds(Cosine, kind=st.just("cosine"), **windows),
    st.builds(Cubic, kind=st.just("cubic"), **windows),
    st.builds(
        Exponential, kind=st.just("exponential"), **(windows | {"from_": above_zero, "to": above_zero})
    ),
    st.builds(
        Step,
        kind=st.just("step"),
        value=numbers,
        factor=numbers,
        at=st.lists(durations, min_size=1, max_size=3).map(tuple),
    ),
    st.builds(OneShot, kind=st.just("one_shot"), from_=numbers, to=numbers, at=durations),
)


def solved(
    spec: type[Spec], kind: str, *others: str, **more: st.SearchStrategy[Any]
) -> st.SearchStrategy[Any]:
    """`every` is of the proximal solver alone."""
    found = more | {"kind": st.just(kind), "strength": schedules}
    proximal = st.builds(spec, solver=st.just("proximal"), every=positive, **found)
    return st.one_of(proximal, st.builds(spec, solver=st.sampled_from(["subgradient", *others]), **found))


elementwise = st.one_of(solved(L1, "l1"), solved(L2, "l2"))
scopes, weights = st.sampled_from(["coupled", "layer"]), st.sampled_from(["size", "macs"])
grouped = solved(GroupLasso, "group_lasso", "half_space", scope=scopes, weight=weights)
inside = solved(GroupLasso, "group_lasso")
criteria = st.one_of(
    st.builds(
        Magnitude,
        kind=st.just("magnitude"),
        norm=st.sampled_from([1, 2]),
        normalize=st.sampled_from(["size", "mean", "none"]),
    ),
    st.builds(Taylor, kind=st.just("taylor"), batches=positive),
    st.builds(Random, kind=st.just("random")),
)
layers = st.lists(
    texts.filter(lambda t: not t.startswith("re:")) | st.just("re:conv[0-9]+"), min_size=1, max_size=3
).map(tuple)
rules = st.one_of(
    st.builds(Rule, layers=layers, protect=st.just(True), override=st.just(True)),
    st.builds(
        Rule,
        layers=layers,
        group=st.just("weight"),
        penalty=st.none() | elementwise,
        criterion=criteria,
        sparsity=shares,
        override=st.just(True),
    ),
    st.builds(
        Rule,
        layers=layers,
        group=st.builds(Pattern, stay=st.integers(1, 3), of=st.integers(4, 16)).map(str),
        penalty=st.none() | elementwise,
        criterion=criteria,
        override=st.just(True),
    ),
    st.builds(
        Rule,
        layers=layers,
        group=st.sampled_from(["shape", "tap"])
        | st.builds(Block, rows=st.integers(2, 9), columns=st.integers(1, 9)),
        penalty=st.none() | inside | elementwise,
        criterion=criteria,
        sparsity=shares,
        override=st.just(True),
    ),
    st.builds(
        Rule,
        layers=layers,
        group=st.sampled_from(["filter", "channel", "neuron"]),
        penalty=st.none() | grouped | elementwise,
        criterion=criteria,
        keep=st.builds(
            Keep,
            at_least=positive,
            multiple_of=positive | st.sampled_from(["auto", None]),
            uniform=st.booleans(),
        ),
        sparsity=st.none() | shares,
        override=st.just(True),
    ),
)
optimizers = st.one_of(
    st.builds(
        Sgd,
        kind=st.just("sgd"),
        lr=schedules,
        momentum=st.floats(0.1, 0.9),
        weight_decay=numbers,
        nesterov=st.booleans(),
    ),
    st.builds(
        Adam, kind=st.just("adam"), lr=schedules, betas=st.tuples(below_one, below_one), weight_decay=numbers
    ),
    st.builds(
        AdamW,
        kind=st.just("adamw"),
        lr=schedules,
        betas=st.tuples(below_one, below_one),
        weight_decay=numbers,
    ),
)
trains = st.builds(
    Train,
    kind=st.just("train"),
    name=texts,
    epochs=positive,
    batch=positive,
    optimizer=optimizers,
    penalties=st.booleans(),
)
cuts = st.builds(Cut, kind=st.just("cut"), name=texts)
stages = (
    st.tuples(st.lists(trains, max_size=2), cuts, st.lists(trains, max_size=1))
    .map(lambda t: (*t[0], t[1], *t[2]))
    .filter(lambda s: len({x.name for x in s}) == len(s))
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-LARGEST, LARGEST)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | texts
)
trees = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | texts, inner, max_size=3)
    ),
    max_leaves=12,
)
inputs = st.builds(
    Input,
    shape=st.lists(positive, min_size=1, max_size=4).map(tuple),
    dtype=st.sampled_from(["float32", "int64", "bool"]),
)


def make_data(source: str, root: str | None, **rest: Any) -> Data:
    """Digits and callables read no folder."""
    return Data(source=source, root=root if source in ("file.npz", "mnist") else None, **rest)


recipes = st.builds(
    Recipe,
    version=st.just(1),
    title=texts.filter(str.strip),
    reference=st.none() | texts.filter(str.strip),
    seed=st.integers(0, 2**32 - 1),
    model=st.none()
    | st.builds(
        Model,
        build=st.sampled_from(["a.b", "my.nets:resnet"]),
        args=st.dictionaries(texts, trees, max_size=3),
    ),
    inputs=st.none()
    | st.lists(inputs, min_size=1, max_size=2).map(tuple)
    | st.dictionaries(texts, inputs, min_size=1, max_size=2),
    data=st.builds(
        make_data,
        source=st.sampled_from(["digits", "my.data:load", "file.npz", "mnist"]),
        root=st.none() | texts,
        validation=st.builds(Share, st.floats(0, 99), st.just("%")),
        split=st.sampled_from(["random", "last"]),
        normalize=st.none() | st.builds(Normalize, mean=st.tuples(numbers), std=st.tuples(above_zero)),
        augment=st.builds(Augment, flip=st.booleans(), crop=st.integers(0, 9)),
    ),
    targets=st.dictionaries(
        texts,
        st.builds(
            Cpu, kind=st.just("cpu"), threads=st.integers(1, 1024), batch=positive, table=st.none() | texts
        )
        | st.builds(Cuda, kind=st.just("cuda"), dtype=st.sampled_from(["float32", "bf16"])),
        max_size=2,
    ),
    budget=st.builds(
        Budget,
        macs=st.none() | left | st.builds(Amount, amounts, st.sampled_from(Amount.UNITS)),
        params=st.none() | left,
        bytes=st.none() | st.builds(Size, amounts, st.sampled_from(Size.UNITS)),
    ),
    rules=st.lists(rules, min_size=1, max_size=3).map(tuple),
    stages=stages,
)

SAMPLE = """\
version: 1
title: Sample
vars: {epochs: 3, share: 40}
data: {source: digits}
budget: {macs: "${share}%"}
rules:
  - layers: [conv1, "fc*"]
    group: filter
    penalty: &p {kind: group_lasso, strength: {kind: linear, from: 0, to: 1e-3}}
  - {layers: fc, group: neuron, penalty: *p}
stages:
  - {kind: train, epochs: "${epochs * 2}", optimizer: {kind: sgd, lr: 0.1}}
  - {kind: cut}
"""
TOKENS = st.sampled_from(
    [
        *"{}[]:,-?*&!|>'\"%@`#~ \t\n\r$()+/0123456789.e=\\\x00\x85\u2028\ufeff",
        "${",
        "<<: ",
        "- ",
        "\n  ",
        "&a ",
        "*a ",
        "---\n",
        "%YAML 1.1\n",
        '"\\ud800"',
        '"\\UFFFFFFFF"',
        "!!python/name:os.system ",
        "1e999",
        ".inf",
        "0x" + "f" * 400,
        "extends: recipe.yaml\n",
        "${1/0}",
        "${9**9**9}",
        "kind: cut",
        "[]",
        "{}",
        "null",
        "true",
        "group_lasso",
    ]
)


@st.composite
def mangled(draw: st.DrawFn) -> str:
    text = SAMPLE
    for _ in range(draw(st.integers(1, 5))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.sampled_from([0, 0, 1, 2, 8])))
        text = text[:start] + draw(TOKENS) + text[end:]
    return text


@pytest.fixture(scope="module")
def file() -> Iterator[Path]:
    with TemporaryDirectory() as folder:
        yield Path(folder) / "recipe.yaml"


def outcome(source: Any, *overrides: str) -> Loaded | RecipeError:
    try:
        return load(source, overrides)
    except RecipeError as error:
        assert error.problems
        str(error).encode("utf-8")
        return error


@FEW
@given(recipes)
def test_a_dumped_recipe_reads_as_itself(file: Path, recipe: Recipe) -> None:
    file.write_text(dump(recipe), encoding="utf-8")
    assert load(file).recipe == recipe
    assert load(recipe).recipe == recipe
    assert load(load(file), ["seed=7"]).recipe == recipe.model_copy(update={"seed": 7})


@FEW
@given(recipes)
def test_other_yaml_readers_see_the_same_text(recipe: Recipe) -> None:
    """YAML 1.1, as most tools read it, must not turn a title into a date or a switch."""
    assert yaml.safe_load(dump(recipe))["title"] == recipe.title.replace("${", "$${")


@settings(max_examples=150, deadline=None)
@given(mangled())
@example('"')
@example("%YAML 99999999999999999999999999999999.1\n---\na: b")
def test_a_mangled_recipe_is_a_recipe_or_a_recipe_error(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")
    outcome(file)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_bytes(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    outcome(file)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=100))
def test_text(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")
    outcome(file)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from([*Recipe.model_fields, "vars", "extends", "x"]), trees))
def test_structures(file: Path, data: dict[str, Any]) -> None:
    outcome(data)
    file.write_text(yaml.safe_dump(data, allow_unicode=True), encoding="utf-8")
    outcome(file)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(
        [
            "epochs",
            "vars.share",
            "title",
            "rules.0.layers",
            "rules.1.penalty.strength",
            "stages.0.optimizer",
            "x",
            "",
        ]
    ),
    st.text(max_size=15) | TOKENS,
)
def test_overrides(file: Path, path: str, value: str) -> None:
    file.write_text(SAMPLE, encoding="utf-8")
    outcome(file, f"{path}={value}")


@settings(max_examples=150, deadline=None)
@given(st.text("0123456789.e+-*/%()<>!~^&|, \n\tabmx_'\"[]{}:=j@#\\\0", max_size=30))
def test_expressions(text: str) -> None:
    outcome({"title": "${" + text + "}", "vars": {"a": 3, "b": 1.5, "x": "text"}})
