"""Mistakes by the thousand, for the whole command line: damaged recipes, wrong values, wrong paths.

    .venv/bin/python tests/benchmarks/fuzz_commands.py --seconds 300 --seed 0

Recipes are mutated from the shipped ones (keys and values removed, repeated, exchanged or replaced; lines and
characters damaged), and given to commands with right and wrong paths and options. Of each call it is asked:
it exits with 0, 1, 2 or 3; it says something where it fails; it never says that this is a bug, and shows no
traceback; with --json it writes one JSON value; and nothing but its own output folder has changed. What
breaks that is printed with the seed of the case, which `--case N` repeats. Exit 1 where there is any.

A third of the cases runs in a process of its own, as an ordinary user, among odd environment variables, with
streams that are closed or full, files that may not be read or written, and signals at a random moment: see
fuzz_surroundings.py. `apply` trains for an epoch there, and an interrupted run is resumed.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import yaml
from fuzz_surroundings import Surroundings, draw_surroundings, run_forked

from sparsify.models import digits_cnn
from sparsify.runs.apply import apply
from sparsify_cli.app import exit_code

EVERY = 200
"""cases after which their number is printed: a long run may be broken off"""
RECIPES = Path(__file__).parents[2] / "recipes"
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 3, 0.5, 1e-300, 1e300, 2**31, 10**12, float("nan"), float("inf")),
    *("", " ", "40%", ".5%", "0%", "100%", "101%", "5ep", "0.5dur", "1e9it", "8MiB", "300M", "2ms", "0.5pp"),
    *("*", "conv*", "re:(a+)+b", "re:[", "Conv2d", "../..", "/dev/null", "x.npy", "x.csv", "https://a.b/c"),
    *(
        "os:system",
        "sparsify.models.lenet5",
        "digits",
        "filter",
        "2:4",
        "4x1",
        "r\u0443les",
        "a\u00a0b",
        "${x}",
    ),
    *([], {}, [[]], [None], {"kind": "cpu"}, {"kind": "linear"}, {"knd": "x"}, ["a", 1], {"": 1}),
)
CHARACTERS = "{}[]:,-#&*!|>'\"%@`\t\n \u00a0\u200b\ufeff\x00\x1b\ud7ff\u2028"
OVERRIDES = (
    "title",
    "seed",
    "budget.macs",
    "rules.0.layers",
    "stages.0.epochs",
    "data.source",
    "targets.a.b",
    "x",
    "",
)


SMALL: dict[str, Any] = {
    "version": 1,
    "title": "Small",
    "model": {"build": "sparsify.models.digits_cnn"},
    "data": {"source": "digits", "validation": "90%"},
    "targets": {"here": {"kind": "cpu"}},
    "rules": [{"layers": "conv*", "group": "filter", "sparsity": "50%"}],
    "stages": [
        {"kind": "train", "name": "t", "epochs": 1, "optimizer": {"kind": "sgd", "lr": 0.1}},
        {"kind": "cut"},
    ],
}


def mutate_tree(chance: random.Random, node: Any) -> Any:
    """A copy with one damage at a random place."""
    if isinstance(node, dict) and node and chance.random() < 0.8:
        key = chance.choice(list(node))
        match chance.randrange(8):
            case 0:
                return {k: v for k, v in node.items() if k != key}
            case 1:
                return {**node, str(key) + chance.choice("sx_ "): node[key]}
            case 2:
                return {(k[:-1] if k == key and isinstance(k, str) else k): v for k, v in node.items()}
        return {**node, key: mutate_tree(chance, node[key])}
    if isinstance(node, list) and node and chance.random() < 0.8:
        at = chance.randrange(len(node))
        match chance.randrange(6):
            case 0:
                return [*node[:at], *node[at + 1 :]]
            case 1:
                return [*node, node[at]]
        return [*node[:at], mutate_tree(chance, node[at]), *node[at + 1 :]]
    return chance.choice(VALUES)


def mutate_text(chance: random.Random, text: str) -> str:
    """A copy with a few characters or lines damaged."""
    for _ in range(chance.randrange(1, 4)):
        at = chance.randrange(len(text) + 1)
        match chance.randrange(4):
            case 0:
                text = text[:at] + chance.choice(CHARACTERS) + text[at:]
            case 1:
                text = text[:at] + text[at + chance.randrange(1, 12) :]
            case 2:
                lines = text.splitlines(keepends=True) or [""]
                chance.shuffle(lines)
                text = "".join(lines)
            case 3:
                text = text[:at]
    return text


def draw_recipe(chance: random.Random) -> str:
    text = chance.choice(sorted(RECIPES.glob("*.yaml"))).read_text(encoding="utf-8")
    if chance.random() < 0.4:
        return mutate_text(chance, text)
    tree = yaml.safe_load(text)
    if chance.random() < 0.5:  # small enough to be planned and applied
        tree = {**SMALL, **{key: tree[key] for key in ("version", "title", "rules") if key in tree}}
    for _ in range(chance.randrange(1, 4)):
        tree = mutate_tree(chance, tree)
    return yaml.safe_dump(tree, allow_unicode=True)


SOUND = (
    *("apply recipe.yaml --from-scratch --quiet", "apply recipe.yaml weights.pt", "apply --resume done"),
    *("plan recipe.yaml weights.pt", "plan recipe.yaml done --json", "validate recipe.yaml --json"),
    *(f"export done --format {form} --out made.{form}" for form in ("safetensors", "pt2", "onnx")),
    "sensitivity recipe.yaml done --examples 9 --quiet --plot made.html",
    *("bench done --seconds 0.1 --json", "report done --json", "report done", "runs .", "diff done done"),
    *("init made.yaml", "explain rules", "schema recipe", "targets", "recipes"),
    "export done --format safetensors --json --out made.x",
)
"""commands that are right, for odd surroundings; half of the time it is `apply`"""


def draw_sound_command(chance: random.Random) -> list[str]:
    arguments = chance.choice(SOUND if chance.random() < 0.5 else SOUND[:2]).split()
    if chance.random() < 0.1:
        arguments[chance.randrange(len(arguments))] = chance.choice(("loop", "damaged.pt", "x", "", "."))
    return arguments


def draw_command(chance: random.Random) -> list[str]:
    """Arguments of one call, in a folder with a recipe, weights and a few other files."""
    recipe = chance.choice(
        ("recipe.yaml", "recipe.yaml", "recipe.yaml", "missing.yaml", ".", "weights.pt", "loop")
    )
    model = chance.choice(
        ("weights.pt", "missing.pt", "recipe.yaml", ".", "damaged.pt", "https://a.b/c", "loop")
    )
    sets = [
        f"{chance.choice(OVERRIDES)}={json.dumps(chance.choice(VALUES))}" for _ in range(chance.randrange(3))
    ]
    options = [part for text in sets for part in ("--set", text)]
    options += ["--strict"] * (chance.random() < 0.2) + ["--json"] * (chance.random() < 0.3)
    options += ["--from-scratch"] * (chance.random() < 0.4) if chance.random() < 0.5 else [model]
    match chance.randrange(8):
        case 0 | 1 | 2:
            return ["validate", recipe, *[o for o in options if o not in ("--from-scratch", model)]]
        case 3 | 4 | 5:
            return ["plan", recipe, *options]
        case 6:
            return [
                chance.choice(("report", "runs", "diff", "export", "bench", "sensitivity")),
                recipe,
                model,
            ]
    return ["explain", chance.choice(("macs", "x", "", "group_lasso", "\u00a0", "rules"))]


DONE: list[Path] = []
"""a complete run, where one was made"""


def prepare(folder: Path, chance: random.Random, small: bool = False) -> None:
    """Write what commands name. small: a recipe that can be applied, without any damage."""
    text = yaml.safe_dump(SMALL) if small else draw_recipe(chance)
    (folder / "recipe.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    weights = io.BytesIO()
    torch.save(digits_cnn().state_dict(), weights)
    content = bytearray(weights.getvalue())
    (folder / "weights.pt").write_bytes(content)
    for _ in range(chance.randrange(1, 20)):
        content[chance.randrange(len(content))] = chance.randrange(256)
    (folder / "damaged.pt").write_bytes(content)
    (folder / "loop").symlink_to("loop")
    (folder / "closed").mkdir(mode=0o555)
    if DONE:
        shutil.copytree(DONE[0], folder / "done")


def list_digests(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        own = inside.parts[0] in ("runs", "home", "sensitivity.json", "x") or inside.name.startswith("made.")
        if path.is_file() and not own:
            found[str(inside)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def try_case(number: int) -> tuple[list[str], str, list[str]]:
    """(arguments, recipe, what is wrong) of one case."""
    chance = random.Random(number)
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        folder = Path(name)
        around = draw_surroundings(chance) if chance.random() < APART else None
        prepare(folder, chance, small=around is not None and chance.random() < 0.7)
        arguments = draw_command(chance) if around is None else draw_sound_command(chance)
        before = list_digests(folder)
        began = time.monotonic()
        if around is None:
            code, out, err = run_here(arguments)
        else:
            code, out, err = run_forked(around, lambda: call(arguments), folder)
        said, faults = out + err, []
        allowed = (0, 1, 2, 3)
        if around is not None and around.kill is not None:
            allowed = (0, 1, 2, 3, *EXITS[around.kill[1]])
            faults += check_killed(folder, around)
        if code not in allowed:
            faults.append(f"exit code {code}")
        faults += [
            f"says {word!r}" for word in ("this is a bug", "Traceback", "Value error,") if word in said
        ]
        quiet = around is not None and around.is_quiet
        if code and not said.strip() and not quiet:
            faults.append(f"exit code {code} without a word")
        if "--json" in arguments and not quiet and not is_json(out):
            faults.append("stdout is not JSON")
        if list_digests(folder) != before:
            faults.append("files beside the output have changed")
        if around is None and time.monotonic() - began > 60:
            faults.append("took longer than a minute")
        if faults and around is not None:
            faults.append(f"among {around.describe()}")
        recipe = (folder / "recipe.yaml").read_text(encoding="utf-8", errors="replace")
        return arguments, recipe, [*faults, *([said[-600:]] if faults else [])]


APART = 1 / 3
"""share of cases with odd surroundings"""
EXITS = {signal.SIGTERM: (143, -15), signal.SIGKILL: (-9,), signal.SIGINT: (130, -2)}


def run_here(arguments: list[str]) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        code = call(arguments)
    return code, out.getvalue(), err.getvalue()


def check_killed(folder: Path, around: Surroundings) -> list[str]:
    """What is wrong with what a killed command left: runs are resumed."""
    assert around.kill is not None
    faults = []
    if around.kill[1] != signal.SIGKILL and not around.modes:
        faults += [f"{path.relative_to(folder)} is left" for path in folder.rglob(".*.tmp")]
    for state in folder.glob("runs/*/state.json"):
        code, _, err = run_here(["apply", "--resume", str(state.parent), "--quiet"])
        if code not in (0, 1, 3) or "this is a bug" in err or "is damaged" in err:
            faults.append(f"resuming ends with {code}: {err[-300:]}")
        faults += [f"{path.relative_to(folder)} is left" for path in state.parent.rglob(".*.tmp")]
    return faults


def import_late_modules(home: Path) -> None:
    """Run the commands that import much when they are called, so that forked processes need not."""
    with contextlib.chdir(home):
        Path("recipe.yaml").write_text(yaml.safe_dump(SMALL), encoding="utf-8")
        for form in ("pt2", "onnx"):
            run_here(["export", str(DONE[0]), "--format", form, "--out", f"made.{form}"])
        run_here(["bench", str(DONE[0]), "--seconds", "0.1"])
        run_here(["sensitivity", "recipe.yaml", str(DONE[0]), "--examples", "9", "--plot", "made.html"])
        run_here(["report", str(DONE[0])])


def call(arguments: list[str]) -> int:
    try:
        return exit_code(arguments)
    except BaseException as error:
        print(f"Traceback: {type(error).__name__}: {error}")
        return 99


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """The options of a fuzzer."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="try this case alone")
    return parser


def move_home() -> str:
    """Give commands an empty home, one thread and little time for timing; returns the home."""
    home = tempfile.mkdtemp()
    apply.__kwdefaults__["timing"] = 0.02
    os.environ |= {"HOME": home, "XDG_CACHE_HOME": home, "COLUMNS": "100"}
    torch.set_num_threads(1)  # threads do not live on in forked processes
    return home


def main() -> int:
    asked = make_parser(__doc__).parse_args()
    home = move_home()
    DONE.append(apply(SMALL, from_scratch=True, out=home))
    import_late_modules(Path(home))
    number = asked.seed * 1_000_000 if asked.case is None else asked.case
    end, tried, failed = time.monotonic() + asked.seconds, 0, 0
    while True:
        arguments, recipe, faults = try_case(number)
        tried += 1
        if faults:
            failed += 1
            print(f"case {number}: sparsify {' '.join(arguments)}\n  " + "\n  ".join(faults), flush=True)
            if asked.case is not None:
                print(recipe)
        if asked.case is not None or time.monotonic() > end:
            break
        if tried % EVERY == 0:
            print(f"{tried} cases so far, {failed} faults", flush=True)
        number += 1
    shutil.rmtree(home, ignore_errors=True)
    print(f"{tried} cases tried, {failed} faults")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
