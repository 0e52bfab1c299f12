"""Whole runs of recipes that nobody wrote: drawn from the JSON Schema, trained, cut, repaired, reported.

    .venv/bin/python tests/benchmarks/fuzz_runs.py --seconds 300 --seed 0

Each case takes a small recipe (images, a table, sequences), exchanges one to four of its parts for others
that the schema of recipes allows, and gives it to `apply`; one case in eight damages the data too. Of each
run it is asked: it exits with 0, 1 or 3, or with 130 where its time was up; it says why where it fails, and
never that this is a bug; of a run that ended the report can be read, limits and exit code say the same, and
the model loads, has as many parameters as the report says and finite outputs; the recipe that it leaves is
valid. What breaks that is printed with the number of the case, which `--case N` repeats. Exit 1 where there
is any.
"""

import contextlib
import json
import math
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from fuzz_commands import make_parser, move_home, run_here
from sklearn.datasets import load_digits

import sparsify

SCHEMA: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "schemas" / "recipe.schema.json").read_text(encoding="utf-8")
)
LIMIT = 25
"""seconds after which a run is interrupted"""
STAGES: list[dict[str, Any]] = [
    {"kind": "train", "name": "t", "epochs": 1, "optimizer": {"kind": "sgd", "lr": 0.05, "momentum": 0.9}},
    {"kind": "cut"},
    {"kind": "repair", "examples": 64},
]
NETS = """
import torch
from torch import nn

class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(8, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 24, dropout=0.0, batch_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        return self.head(self.blocks(self.embed(x[:, 0])).mean(1))

class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(8, 12, num_layers=2, batch_first=True)
        self.gru = nn.GRU(12, 10, batch_first=True)
        self.head = nn.Linear(10, 10)

    def forward(self, x):
        return self.head(self.gru(self.lstm(x[:, 0])[0])[0][:, -1])
"""
IMAGES = {"source": "images.npz", "validation": "20%"}
BASES: dict[str, dict[str, Any]] = {
    "images": {
        "model": {"build": "sparsify.models.digits_cnn"},
        "data": IMAGES,
        "rules": [{"layers": "conv*", "group": "filter", "sparsity": "50%"}],
    },
    "table": {
        "model": {"build": "sparsify.models.mlp", "args": {"widths": [6, 16, 12, 1]}},
        "data": {"source": "table.csv", "test": "20%", "validation": "20%", "target": "y"},
        "task": {"kind": "regression"},
        "rules": [{"layers": "Linear", "group": "neuron", "sparsity": "50%"}],
    },
    "blocks": {
        "model": {"build": "sparsify.models.cifar_resnet", "args": {"depth": 8}},
        "data": {"source": "color.npz", "validation": "20%"},
        "rules": [{"layers": "layer*.conv1", "group": "filter", "sparsity": "50%"}],
    },
    "depth": {
        "model": {"build": "sparsify.models.cifar_resnet", "args": {"depth": 14, "shortcut": "B"}},
        "data": {"source": "color.npz", "validation": "20%"},
        "budget": {"macs": "70%"},
        "rules": [{"layers": "layer*", "group": "depth"}],
    },
    "attention": {
        "model": {"build": "fuzz_nets:Attention"},
        "data": IMAGES,
        "rules": [{"layers": "blocks*", "group": "head", "sparsity": "50%"}, {"layers": "*.linear1"}],
        "budget": {"params": "60%"},
    },
    "recurrent": {
        "model": {"build": "fuzz_nets:Recurrent"},
        "data": IMAGES,
        "rules": [{"layers": ["lstm", "gru"], "group": "hidden", "sparsity": "50%"}],
    },
}
SHAPES = {"images.npz": (2, 1, 8, 8), "color.npz": (2, 3, 8, 8), "table.csv": (2, 6)}
STRINGS: Mapping[str, tuple[str, ...]] = {
    "layers": ("conv*", "*", "Conv2d", "Linear", "fc*", r"re:conv\d", "layer*", "layer1.*", "nothing*"),
    "only": ("conv*", "*", "Linear", "nothing*"),
    "name": ("a", "b", "learn", "finetune"),
    "title": ("A", "b c"),
    "": ("a", "conv*", "x"),
}
TEXTS = (
    *("10%", "30%", "50%", "75%", "100%", "1%", "0%", "99.9%", "1pp", "5pp", "0.5dur", "1dur", "0.2dur"),
    *("1ep", "3it", "1it", "20it", "2x1", "4x1", "1x4", "2:4", "1:2", "1MiB", "100kB", "10kB", "20000"),
    *("1ms", "0.1ms", "100us", "1M", "300k", "10k", "1GiB", "1:1", "1x1"),
)
NUMBERS = (0, 1e-8, 1e-4, 1e-3, 0.01, 0.1, 0.3, 0.5, 0.9, 0.999, 1, 1.5, 2, 3, 4, 8, 16, 100, 1000)
OFTEN = 0.8
"""share of the changes that are of rules, stages or the budget"""
ODD = 0.05
"""how often an odd thing is drawn: an expression, a null, a large number"""


def resolve(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    while "$ref" in schema:
        schema = SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]]
    return schema


def list_choices(schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The plain schemas of which this one allows any."""
    schema = resolve(schema)
    parts = schema.get("anyOf") or schema.get("oneOf")
    if parts is None:
        return [schema]
    return [choice for part in parts for choice in list_choices(part)]


def is_odd(schema: Mapping[str, Any]) -> bool:
    return schema.get("type") == "null" or schema is SCHEMA["$defs"]["Expression"]


class Drawing:
    """Values that a schema allows, each by itself: together they may make no sense."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    def draw(self, schema: Mapping[str, Any], name: str = "", depth: int = 0) -> Any:
        choices = list_choices(schema)
        plain = [choice for choice in choices if not is_odd(choice)]
        chosen = self._chance.choice(plain if plain and self._chance.random() > ODD else choices)
        if "const" in chosen:
            return chosen["const"]
        if "enum" in chosen:
            return self._chance.choice(chosen["enum"])
        match chosen.get("type"):
            case "object":
                return self._draw_object(chosen, depth)
            case "array":
                least = max(chosen.get("minItems", 1), 1)
                items = chosen.get("items", {})
                return [
                    self.draw(items, name, depth + 1) for _ in range(self._chance.randint(least, least + 1))
                ]
            case "string":
                return self._draw_text(chosen, name)
            case "integer" | "number" as kind:
                return self._draw_number(chosen, whole=kind == "integer", name=name)
            case "boolean":
                return self._chance.random() < 0.5
        return None

    def _draw_object(self, schema: Mapping[str, Any], depth: int) -> dict[str, Any]:
        properties = schema.get("properties", {})
        if not properties:
            inside = schema.get("additionalProperties")
            return {"a": self.draw(inside, "a", depth + 1)} if isinstance(inside, dict) else {}
        share = 0.5 if len(properties) < 4 else 0.2 / (1 + depth)
        return {
            key: self.draw(own, key, depth + 1)
            for key, own in properties.items()
            if key in schema.get("required", ()) or self._chance.random() < share
        }

    def _draw_text(self, schema: Mapping[str, Any], name: str) -> str:
        pattern = schema.get("pattern")
        if pattern is None:
            return self._chance.choice(STRINGS.get(name, STRINGS[""]))
        fitting = [text for text in TEXTS if re.search(pattern, text)]
        return self._chance.choice(fitting or ["x"])

    def _draw_number(self, schema: Mapping[str, Any], whole: bool, name: str) -> float:
        least = schema.get("minimum", schema.get("exclusiveMinimum", -math.inf))
        most = schema.get("maximum", schema.get("exclusiveMaximum", math.inf))
        fitting = [n for n in NUMBERS if least <= n <= most and (not whole or isinstance(n, int))]
        found = self._chance.choice(fitting or [1])
        if name in ("epochs", "trials", "workers", "batches", "threads"):
            return min(found, 2)
        return found

    def change(self, value: Any, schema: Mapping[str, Any], name: str = "", depth: int = 0) -> Any:
        """A copy with one part exchanged for another that the schema allows, or with one more."""
        chosen = self._find_schema(value, schema)
        goes_on = depth == 0 or self._chance.random() < 0.75
        if isinstance(value, dict) and value and chosen is not None and goes_on:
            properties = chosen.get("properties", {})
            left = [key for key in properties if key not in value and key not in UNTOUCHED]
            if left and self._chance.random() < 0.4:
                key = self._chance.choice(left)
                return {**value, key: self.draw(properties[key], key, depth + 1)}
            key = self._chance.choice([key for key in value if key not in UNTOUCHED] or list(value))
            own = properties.get(key, chosen.get("additionalProperties"))
            if isinstance(own, dict):
                return {**value, key: self.change(value[key], own, key, depth + 1)}
            return value
        if isinstance(value, list) and value and chosen is not None and goes_on:
            items = chosen.get("items", {})
            at = self._chance.randrange(len(value))
            if self._chance.random() < 0.3:
                return [*value[:at], self.draw(items, name, depth + 1), *value[at:]]
            return [*value[:at], self.change(value[at], items, name, depth + 1), *value[at + 1 :]]
        return self.draw(schema, name, depth)

    def _find_schema(self, value: Any, schema: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Which of the choices a mapping or a list is of."""
        wanted = "object" if isinstance(value, dict) else "array" if isinstance(value, list) else None
        for choice in list_choices(schema):
            if choice.get("type") != wanted:
                continue
            kind = choice.get("properties", {}).get("kind", {}).get("const")
            if kind is None or not isinstance(value, dict) or value.get("kind") == kind:
                return choice
        return None


UNTOUCHED = ("version", "extends", "vars", "title", "reference", "model", "source", "root", "calls", "inputs")
UNTOUCHED += ("trackers", "test", "tokenizer", "teacher")
"""keys whose values stay: files and callables are the business of fuzz_commands.py"""


def draw_recipe(chance: random.Random) -> dict[str, Any]:
    """A recipe that reads as valid, if one of twelve draws does."""
    for _ in range(12):
        recipe = draw_any_recipe(chance)
        try:
            sparsify.load_recipe(recipe)
        except sparsify.SparsifyError:
            continue
        break
    return recipe


def draw_any_recipe(chance: random.Random) -> dict[str, Any]:
    base = BASES[chance.choice(list(BASES))]
    recipe: dict[str, Any] = {
        "version": 1,
        "title": "Drawn",
        "targets": {"here": {"kind": "cpu"}},
        **base,
        "stages": STAGES,
    }
    drawing = Drawing(chance)
    for _ in range(chance.randint(1, 4)):
        if chance.random() < OFTEN:
            key = chance.choice(("rules", "rules", "stages", "stages", "budget"))
            changed = drawing.change(recipe.get(key, {}), SCHEMA["properties"][key], key, depth=1)
            recipe = {**recipe, key: changed}
        else:
            recipe = drawing.change(recipe, SCHEMA)
    return recipe


def write_data(folder: Path, chance: random.Random, damaged: bool) -> None:
    """Small data sets under the names that the recipes have."""
    digits = load_digits()
    images, classes = (digits.images[:240, None] / 16).astype(np.float32), digits.target[:240]
    table = np.random.default_rng(0).normal(size=(120, 6))
    values = table @ np.arange(1, 7) / 5
    if damaged:
        match chance.randrange(6):
            case 0:
                images[chance.randrange(240)] = np.nan
            case 1:
                classes = np.zeros_like(classes)
            case 2:
                images, classes = images[:30], classes[:30]
            case 3:
                table[:, 2] = 7.0
            case 4:
                values[:] = 0.0
            case 5:
                images[:] = 0.0
    arrays = {
        "x_train": images[:200],
        "y_train": classes[:200],
        "x_test": images[200:],
        "y_test": classes[200:],
    }
    if not len(arrays["x_test"]):
        arrays |= {"x_test": images[:10], "y_test": classes[:10]}
    np.savez(folder / "images.npz", **arrays)
    colored = {key: array.repeat(3, 1) if key.startswith("x_") else array for key, array in arrays.items()}
    np.savez(folder / "color.npz", **colored)
    (folder / "fuzz_nets.py").write_text(NETS)
    rows = ["a,b,c,d,e,f,y"]
    rows += [",".join(f"{number:.4f}" for number in (*row, y)) for row, y in zip(table, values, strict=True)]
    (folder / "table.csv").write_text("\n".join(rows) + "\n")


@contextlib.contextmanager
def interrupt_after(seconds: float) -> Iterator[None]:
    """As if Ctrl-C were pressed."""
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_command(arguments: list[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command that is interrupted where it takes long."""
    with interrupt_after(LIMIT):
        return run_here(arguments)


BAD = ("this is a bug", "Traceback", "Value error,", "<list[", "NoneType")


def check_said(code: int, said: str) -> list[str]:
    faults = [f"says {word!r}" for word in BAD if word in said]
    if code not in (0, 1, 2, 3, 130):
        faults.append(f"exit code {code}")
    if code and not said.strip():
        faults.append(f"exit code {code} without a word")
    return faults


def check_run(run: Path, shape: Sequence[int]) -> list[str]:
    """What is wrong with a run that ended. shape: of the model's inputs."""
    faults = []
    for command in (
        ["report", str(run)],
        ["report", str(run), "--json"],
        ["validate", str(run / "recipe.yaml")],
    ):
        ended, out, err = run_command(command)
        if ended not in (0, 130):
            faults.append(f"{command[0]} of the run ends with {ended}: {(out + err)[-300:]}")
    report = json.loads((run / "report.json").read_text())
    model = sparsify.load_run(run).eval()
    counted = sum(parameter.numel() for parameter in model.parameters())
    if counted != report["cut"]["params"]:
        faults.append(f"the report says {report['cut']['params']} parameters, the model has {counted}")
    for limit in report["limits"]:
        if (
            limit["met"] is not (limit["achieved"] <= limit["limit"] * (1 + 1e-9))
            and "budget" in limit["what"]
        ):
            faults.append(
                f"{limit['what']}: {limit['achieved']} of {limit['limit']} is said to be {limit['met']}"
            )
    with torch.no_grad():
        outputs = model(torch.zeros(shape))
    if not bool(outputs.isfinite().all()):
        faults.append("outputs of the cut model are not finite")
    return faults


def check_exit(run: Path, code: int) -> list[str]:
    """`apply` ends with 0 where every limit is met, and with 3 where one is not."""
    limits = json.loads((run / "report.json").read_text())["limits"]
    expected = 0 if all(limit["met"] for limit in limits) else 3
    return [] if code == expected else [f"exit code {code}, and by the report it is {expected}"]


def try_case(number: int) -> tuple[str, dict[str, Any], list[str]]:
    """(how it ended, the recipe, what is wrong) of one case."""
    chance = random.Random(number)
    recipe = draw_recipe(chance)
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        folder = Path(name)
        write_data(folder, chance, damaged=chance.random() < 1 / 8)
        text = yaml.safe_dump(recipe, sort_keys=False)
        (folder / "recipe.yaml").write_text(text)
        valid, out, err = run_command(["validate", "recipe.yaml"])
        faults = check_said(valid, out + err)
        if valid:
            return "not valid", recipe, [*faults, *([(out + err)[-600:]] if faults else [])]
        command = ["tune" if "search" in recipe else "apply", "recipe.yaml", "--from-scratch", "--quiet"]
        code, out, err = run_command(command)
        said = out + err
        faults += check_said(code, said)
        faults += [f"{path.name} is left" for path in (folder / "runs").rglob(".*.tmp")]
        for report in (folder / "runs").rglob("report.json") if code in (0, 3) else ():
            if "baselines" in report.parts:
                continue
            try:
                faults += check_run(report.parent, SHAPES[recipe["data"]["source"]])
                faults += check_exit(report.parent, code) if command[0] == "apply" else []
            except Exception as error:
                faults.append(f"the run cannot be read: {type(error).__name__}: {error}")
        first = next((line for line in err.splitlines() if line.strip()), "")
        ended = f"exit {code}" + f" {first[:90]}" * (code == 1)
        return ended, recipe, [*faults, *([said[-900:]] if faults else [])]


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--verbose", action="store_true", help="say how each case ended")
    asked = parser.parse_args()
    move_home()
    number = asked.seed * 1_000_000 if asked.case is None else asked.case
    end, failed, ends = time.monotonic() + asked.seconds, 0, Counter[str]()
    while True:
        ended, recipe, faults = try_case(number)
        ends[ended.split()[0] + " " + ended.split()[1]] += 1
        if asked.verbose:
            print(f"case {number}: {ended}", flush=True)
        if faults:
            failed += 1
            print(f"case {number}:", *faults, yaml.safe_dump(recipe, sort_keys=False), sep="\n  ", flush=True)
        number += 1
        if asked.case is not None or time.monotonic() >= end:
            break
    print(
        f"{ends.total()} cases, {failed} with faults;", ", ".join(f"{k}: {n}" for k, n in ends.most_common())
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
