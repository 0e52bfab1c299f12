"""Broken and hostile run folders: each command gives one clear error, executes nothing, overwrites nothing,
and does not hang.

Three mutations of each file; 100 with NIGHTLY=1, 1000 with SPARSIFY_FUZZ=1000.
"""

import contextlib
import hashlib
import io
import json
import os
import pickle
import random
import re
import shutil
import signal
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sparsify import files
from sparsify.events import EpochDone, Event
from sparsify.runs import run_folder
from sparsify.runs.apply import apply
from sparsify_cli.app import exit_code

ROUNDS = int(os.environ.get("SPARSIFY_FUZZ", "100" if os.environ.get("NIGHTLY") == "1" else "3"))
SECONDS = 600
"""after which a command counts as hanging; the slowest takes two on a quiet machine"""
STAGE = {
    "kind": "train",
    "name": "learn",
    "epochs": 2,
    "optimizer": {"kind": "sgd", "lr": 0.05, "momentum": 0.9},
}
RECIPE: dict[str, Any] = {
    "version": 1,
    "title": "Small",
    "model": {"build": "sparsify.models.digits_cnn"},
    "data": {"source": "digits", "validation": "70%"},
    "rules": [
        {
            "layers": "conv*",
            "group": "filter",
            "sparsity": "50%",
            "penalty": {"kind": "group_lasso", "strength": 1e-3},
        }
    ],
    "stages": [STAGE, {"kind": "cut"}, {**STAGE, "name": "finetune"}],
}
ON_RUN: dict[str, tuple[str, ...]] = {
    "report": ("report", "RUN"),
    "json": ("report", "RUN", "--json"),
    "diff": ("diff", "RUN", "SOUND"),
    "runs": ("runs", "."),
    "export": ("export", "RUN", "--format", "safetensors", "--out", "out.safetensors"),
    "bench": ("bench", "RUN", "--seconds", "0.1"),
    "plan": ("plan", "again.yaml", "RUN"),
}
CREATED = Path("executed")


class Interrupted(Exception):
    """Ends a run in the middle."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`sound`, a complete run, and `halted`, one that was interrupted after the first epoch after its cut."""
    where = tmp_path_factory.mktemp("hostile")

    seen: list[EpochDone] = []

    def stop(event: Event) -> None:
        seen.extend([event] if isinstance(event, EpochDone) else [])
        if len(seen) == 4:
            raise Interrupted

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        apply(RECIPE, from_scratch=True, timing=0.05).rename("sound")
        with contextlib.suppress(Interrupted):
            apply(RECIPE, from_scratch=True, timing=0.05, listener=stop)
        Path("runs/small-1").rename("halted")
        Path("runs").rmdir()
        again = {k: v for k, v in RECIPE.items() if k not in ("stages", "data")}
        Path("again.yaml").write_text(json.dumps({**again, "inputs": [{"shape": [2, 1, 8, 8]}]}))
    assert (where / "halted" / run_folder.CHECKPOINT).exists() and (
        where / "sound" / run_folder.REPORT
    ).exists()
    return where


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(apply.__kwdefaults__, "timing", 0.02)


class Hangs(Exception):
    """A command took too long."""


@contextlib.contextmanager
def limited() -> Iterator[None]:
    def ring(_signal: int, _frame: Any) -> None:
        raise Hangs

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def said(*arguments: str) -> tuple[int, str]:
    """Exit code and what went to stderr."""
    err = io.StringIO()
    with (
        limited(),
        contextlib.redirect_stderr(err),
        contextlib.redirect_stdout(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        code = exit_code(list(arguments))
    return code, err.getvalue()


def snapshot(folder: Path) -> dict[str, str]:
    return {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.iterdir()
        if p.is_file() and not p.is_symlink()
    }


def check(label: str, arguments: tuple[str, ...], *, fails: bool | None = None, known: str = "") -> str:
    """One command on the mutated folder."""
    run = Path("run")
    before = snapshot(run) if run.is_dir() else {}
    full = tuple({"RUN": "run", "SOUND": "sound"}.get(a, a) for a in arguments)
    code, err = said(*full)
    what = f"{label}: sparsify {' '.join(full)} -> {code}\n{err}"
    assert "this is a bug" not in err and "Traceback" not in err, what
    assert code in (0, 1), what
    assert not CREATED.exists(), f"{what}\nsomething was executed"
    if code:
        lines = [line for line in err.strip().splitlines() if not line.startswith(("exporting ", "timing "))]
        assert lines and all(len(line) < 2100 for line in lines) and "errors.pydantic.dev" not in err, what
        assert len(lines) == 1 or all(
            re.match(r"\S*run/recipe\.yaml:\d|run/\S+: ", line) for line in lines
        ), what
        assert not Path("out.safetensors").exists(), what
    if fails is not None:
        assert code == int(fails), what
    assert known in err, what
    resuming = {run_folder.STATE, run_folder.LOG, run_folder.LOCK} if "--resume" in arguments else set()
    after = snapshot(run) if run.is_dir() else {}
    if code or not resuming:
        assert {k: v for k, v in after.items() if k not in resuming} == {
            k: v for k, v in before.items() if k not in resuming
        }, what
    Path("out.safetensors").unlink(missing_ok=True)
    return err


def fresh(made: Path, name: str = "sound") -> Path:
    """A copy of one of the two runs, called `run`, beside the sound one."""
    for folder in ("run", "sound", "runs"):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(made / name, "run")
    shutil.copytree(made / "sound", "sound")
    shutil.copy(made / "again.yaml", "again.yaml")
    return Path("run")


def signed(run: Path) -> None:
    """Bring the digests in report.json up to date, as who edits a file with intent would."""
    body = json.loads((run / run_folder.REPORT).read_bytes())
    body["files"] = {
        name: hashlib.sha256((run / name).read_bytes()).hexdigest()
        for name in body["files"]
        if (run / name).is_file()
    }
    (run / run_folder.REPORT).write_text(json.dumps(body))


NASTY: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    10**6,
    10**18,
    -(10**18),
    2**63,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "../../etc/passwd",
    "__class__",
    "__init__",
    "weight.__dict__",
    "conv1.__class__",
    "\0",
    "a" * 5000,
    "os.system",
    "builtins:exec",
    [],
    {},
    [[]],
    [[0, 10**18]],
    [[0, 4], [2, 3]],
    [[-1, 3]],
    {"a": {"b": [1]}},
    "\ud800",
    "nan",
    "1e999",
    "💥",
]


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a tree, leaves and branches."""
    yield at
    for key, part in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        yield from places(part, (*at, key))


def edited(body: Any, rng: random.Random) -> Any:
    """One entry of a JSON document replaced, removed, renamed or doubled."""
    at = rng.choice([p for p in places(body) if p])
    parent = body
    for key in at[:-1]:
        parent = parent[key]
    last, deed = at[-1], rng.randrange(5)
    if deed == 0:
        del parent[last]
    elif deed == 1 and isinstance(parent, dict):
        parent[rng.choice(["x", "__class__", "keep", "op"])] = parent.pop(last)
    elif deed == 2 and isinstance(parent, list):
        parent.append(parent[last])
    else:
        parent[last] = rng.choice(NASTY)
    return body


def bitten(data: bytes, rng: random.Random) -> bytes:
    """Bytes cut short, flipped, overwritten, repeated or put in; more often near the beginning, where headers
    are."""
    at = rng.randrange(min(len(data), rng.choice([16, 256, 4096, len(data)])) or 1)
    match rng.randrange(6):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :] if data else b"x"
        case 2:
            return data[:at] + rng.randbytes(8) + data[at + 8 :]
        case 3:
            return data[:at] + data[at : at + 64] + data[at:]
        case 4:
            return data + rng.randbytes(rng.choice([1, 100]))
        case _:
            return rng.choice(
                [
                    b"",
                    b"\0" * 100,
                    b"{}",
                    b"[]",
                    b"null",
                    b'"',
                    b"{" * 10**5,
                    b"[" * 10**5,
                    b"9" * 10**5,
                    rng.randbytes(64),
                ]
            )


def headed(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file with an edited header of the right length."""
    length = struct.unpack("<Q", data[:8])[0]
    head = json.dumps(edited(json.loads(data[8 : 8 + length]), rng)).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(head)) + head + data[8 + length :]


def mutated(path: Path, rng: random.Random) -> None:
    data = path.read_bytes()
    if path.suffix == ".safetensors" and rng.random() < 0.5:
        path.write_bytes(headed(data, rng))
    elif path.suffix == ".json" and rng.random() < 0.8:
        path.write_bytes(json.dumps(edited(json.loads(data), rng)).encode("utf-8", "surrogatepass"))
    elif path.suffix == ".yaml" and rng.random() < 0.8:
        lines = data.decode().splitlines()
        at = rng.randrange(len(lines))
        value = rng.choice(
            [
                "null",
                "-1",
                "1e308",
                "[]",
                "{}",
                "*a",
                "&a [*a]",
                "!!python/object/apply:os.system ['touch executed']",
                "${x}",
                "os.system",
                "'",
            ]
        )
        lines[at] = rng.choice(
            [lines[at].partition(":")[0] + ": " + value, value, "", lines[at] * 2, "  " + lines[at]]
        )
        path.write_text("\n".join(lines))
    else:
        path.write_bytes(bitten(data, rng))


@pytest.mark.parametrize(
    "name",
    [
        run_folder.RECIPE,
        run_folder.PLAN,
        run_folder.CUTS,
        run_folder.WEIGHTS,
        run_folder.DENSE,
        run_folder.REPORT,
        run_folder.LOG,
        run_folder.BASE,
    ],
)
def test_whatever_a_file_of_a_complete_run_holds(made: Path, name: str) -> None:
    for n in range(ROUNDS):
        rng = random.Random(f"{name} {n}")
        run = fresh(made)
        if name == run_folder.BASE:
            files.write_bytes(
                run / name,
                files.as_json(
                    {"model": RECIPE["model"], "cuts": [json.loads((run / run_folder.CUTS).read_bytes())]}
                ),
            )
        mutated(run / name, rng)
        if name != run_folder.REPORT and rng.random() < 0.7:
            signed(run)
        for command in rng.sample(sorted(ON_RUN), 2):
            check(f"{name} {n}", ON_RUN[command])


@pytest.mark.parametrize(
    "name", [run_folder.RECIPE, run_folder.PLAN, run_folder.STATE, run_folder.CHECKPOINT, run_folder.LOG]
)
def test_whatever_a_file_of_an_interrupted_run_holds(made: Path, name: str) -> None:
    for n in range(ROUNDS):
        run = fresh(made, "halted")
        if name not in (run_folder.STATE, run_folder.CHECKPOINT) and n >= max(4, ROUNDS // 4):
            return  # of the others little is read on the way
        mutated(run / name, random.Random(f"halted {name} {n}"))
        check(f"halted {name} {n}", ("apply", "--resume", "RUN", "--quiet"))


class Run:
    """Creates a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {CREATED}",)


def saved(run: Path, change: Callable[[Any], Any]) -> None:
    """The checkpoint with an edited body."""
    path = run / run_folder.CHECKPOINT
    torch.save(change(torch.load(path, weights_only=True)), path)


def put(key: str, value: Any) -> Callable[[Any], Any]:
    return lambda body: {**body, key: value}


def huge(body: Any) -> Any:
    """A few bytes that claim to be 8 TB."""
    return {**body, "weights": {**body["weights"], "conv1.weight": torch.zeros(1).expand(2 * 10**12)}}


def bomb(path: Path) -> None:
    """Ten kilobytes that unpack to ten megabytes: entries as torch names them, compressed."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + b"0" * 10**7)
        archive.writestr("archive/version", "3")


CHECKPOINTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "code": (lambda run: saved(run, put("weights", Run())), "is damaged (Weights only load failed"),
    "a plain pickle": (
        lambda run: (run / run_folder.CHECKPOINT).write_bytes(pickle.dumps(Run())),
        "is damaged (File is not a zip file)",
    ),
    "a zip bomb": (
        lambda run: bomb(run / run_folder.CHECKPOINT),
        "is damaged (archive/data.pkl is compressed, which torch.save never does)",
    ),
    "eight terabytes": (lambda run: saved(run, huge), "its tensors would take 8,000,"),
    "no mapping": (
        lambda run: saved(run, lambda _: [1]),
        "is damaged (list indices must be integers or slices, not str)",
    ),
    "a folder": (
        lambda run: ((run / run_folder.CHECKPOINT).unlink(), (run / run_folder.CHECKPOINT).mkdir()),
        "is damaged (it is not a regular file)",
    ),
    "a newer version": (
        lambda run: saved(run, put("version", 2)),
        "checkpoint.pt was written by a newer sparsify (version: 2); continue the run with that version",
    ),
    "another recipe": (lambda run: saved(run, put("recipe", "x")), "belongs to another run; start a new one"),
    "a stage that is none": (
        lambda run: saved(run, put("stage", -1)),
        "is damaged (its stage is -1 of 4)",
    ),
    "a stage beyond the last": (
        lambda run: saved(run, put("stage", 99)),
        "is damaged (its stage is 99 of 4)",
    ),
    "weights of another model": (
        lambda run: saved(run, put("weights", torch.nn.Linear(2, 2).state_dict())),
        "does not fit the model that the recipe builds",
    ),
    "NaN": (
        lambda run: saved(
            run, lambda b: {**b, "weights": {k: v * float("nan") for k, v in b["weights"].items()}}
        ),
        "NaN or infinite weights in",
    ),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_hostile_checkpoint_is_refused(made: Path, name: str) -> None:
    change, known = CHECKPOINTS[name]
    change(fresh(made, "halted"))
    check(name, ("apply", "--resume", "RUN", "--quiet"), fails=True, known=known)


def test_whatever_the_entries_of_a_checkpoint_are(made: Path) -> None:
    for n in range(2 * ROUNDS):
        rng, run = random.Random(f"entries {n}"), fresh(made, "halted")
        saved(run, lambda body, rng=rng: edited(body, rng))
        check(f"entries {n}", ("apply", "--resume", "RUN", "--quiet"))


def test_a_bit_flipped_anywhere_in_weights_is_noticed(made: Path) -> None:
    """In every region of both weights files and of the checkpoint; what no digest covers, checksums do."""
    for name in (run_folder.WEIGHTS, run_folder.DENSE):
        data = (made / "sound" / name).read_bytes()
        for at in [0, 4, 8, 9, *range(16, len(data), len(data) // 12 + 1), len(data) - 1]:
            run = fresh(made)
            (run / name).write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            command = ON_RUN["bench"] if name == run_folder.DENSE else ON_RUN["export"]
            check(
                f"{name} {at}",
                command,
                fails=True,
                known=(
                    f"run/{name} was changed after the run: its SHA-256 differs from the one in report.json"
                ),
            )
    data = (made / "halted" / run_folder.CHECKPOINT).read_bytes()
    noticed = 0
    for at in range(200, len(data) - 200, len(data) // 12):
        run = fresh(made, "halted")
        (run / run_folder.CHECKPOINT).write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        code, err = said("apply", "--resume", "run", "--quiet")
        assert code == 0 or "checkpoint.pt is damaged" in err, (
            at,
            err,
        )  # in the padding between entries nothing is lost
        noticed += code
    assert noticed > 6


def narrow(**changes: Any) -> Callable[[dict[str, Any]], None]:
    """The first operation that narrows, changed."""

    def change(body: dict[str, Any]) -> None:
        next(op for op in body["operations"] if op["op"] == "narrow").update(changes)

    return change


def appended(**op: Any) -> Callable[[dict[str, Any]], None]:
    return lambda body: body["operations"].append(op)


def again(body: dict[str, Any]) -> None:
    body["operations"].insert(0, next(op for op in body["operations"] if op["op"] == "narrow"))


def endless(body: dict[str, Any]) -> None:
    """A gathering of the last layer with the size that it has after the cut, and columns without end."""
    kept = next(
        (op["keep"] for op in body["operations"] if (op.get("tensor"), op.get("dim")) == ("fc.weight", 1)),
        [[0, 128]],
    )
    appended(op="gather", module="fc", size=sum(b - a for a, b in kept), keep=[[0, 10**18]])(body)


BEYOND = "keeps indices of 'conv1.weight' that are out of order or beyond its 16 entries"
CUTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "indices out of range": (narrow(keep=[[0, 17]]), BEYOND),
    "as many as would exhaust the memory": (narrow(keep=[[0, 10**18]]), BEYOND),
    "the same twice": (narrow(keep=[[0, 2], [0, 2]]), BEYOND),
    "out of order": (narrow(keep=[[4, 8], [0, 2]]), BEYOND),
    "backwards": (narrow(keep=[[8, 4]]), BEYOND),
    "nothing": (narrow(keep=[]), BEYOND),
    "negative": (
        narrow(keep=[[-4, 4]]),
        "is damaged: operations.0.narrow.keep.0.0: Input should be greater than or equal to 0",
    ),
    "another size": (
        narrow(size=10**18),
        "expects 'conv1.weight' to have 1000000000000000000 entries in dimension 0, this model has 16",
    ),
    "a dimension that is none": (narrow(dim=9), "entries in dimension 9, this model has None"),
    "a negative dimension": (
        narrow(dim=-1),
        "is damaged: operations.0.narrow.dim: Input should be greater than or equal to 0",
    ),
    "twice": (again, "the cut log narrows dimension 0 of 'conv1.weight' twice"),
    "a tensor that is none": (
        narrow(tensor="conv1.__class__"),
        "narrows 'conv1.__class__', which this model does not have",
    ),
    "a path": (
        narrow(tensor="../../etc/passwd"),
        "narrows '../../etc/passwd', which this model does not have",
    ),
    "an empty name": (
        narrow(tensor=""),
        "is damaged: operations.0.narrow.tensor: String should have at least 1 character",
    ),
    "a dunder attribute": (
        appended(op="set", module="conv1", attribute="__class__", value=1),
        "sets 'conv1.__class__', which is not a width of a Conv2d",
    ),
    "a method": (
        appended(op="set", module="conv1", attribute="forward", value=1),
        "sets 'conv1.forward', which is not a width of a Conv2d",
    ),
    "a flag": (
        appended(op="set", module="conv1", attribute="training", value=0),
        "sets 'conv1.training', which is not a width of a Conv2d",
    ),
    "a width that grows": (
        appended(op="set", module="conv1", attribute="out_channels", value=10**9),
        "to 1000000000, which is not a smaller width than",
    ),
    "a padding that exhausts the memory": (
        appended(op="set", module="conv1", attribute="padding", value=[10**9, 10**9]),
        "which is not a smaller width than (1, 1)",
    ),
    "a module that is none": (
        appended(op="set", module="conv1..x", attribute="out_channels", value=1),
        "names a module 'conv1..x' that this model does not have",
    ),
    "a module that is a method": (
        appended(op="set", module="conv1.forward", attribute="x", value=1),
        "names a module 'conv1.forward' that this model does not have",
    ),
    "columns that would exhaust the memory": (
        endless,
        "keeps columns of 'fc' that are out of order or beyond its",
    ),
    "a module removed that is none": (
        appended(op="silence", module="../conv1"),
        "removes a module '../conv1' that this model does not have",
    ),
    "an attention that is none": (
        appended(op="replace", module="conv1"),
        "replaces 'conv1', which is not a MultiheadAttention in this model",
    ),
    "a kernel beyond its size": (
        appended(op="crop", module="conv1", kernel=[3, 3], grids=[[0, 1, 10**18], [0, 1, 1]]),
        "keeps kernel positions of 'conv1' that lie beyond its 3x3",
    ),
    "an operation that is none": (appended(op="exec", module="os", value="x"), "is damaged: operations."),
    "no list": (lambda body: body.update(operations=5), "is damaged: operations: "),
}


@pytest.mark.parametrize("name", CUTS)
def test_a_cut_log_edited_by_hand_is_refused(made: Path, name: str) -> None:
    """Even with a digest that fits; without one the edit as such is noticed."""
    change, known = CUTS[name]
    run = fresh(made)
    body = json.loads((run / run_folder.CUTS).read_bytes())
    change(body)
    (run / run_folder.CUTS).write_text(json.dumps(body))
    for command in ("export", "bench", "plan"):
        check(name, ON_RUN[command], fails=True, known="run/cuts.json was changed after the run")
    signed(run)
    for command in ("export", "bench", "plan"):
        check(name, ON_RUN[command], fails=True, known=known)


NEEDS: dict[str, set[str]] = {
    run_folder.RECIPE: {"diff", "export", "bench", "plan"},
    run_folder.PLAN: {"export"},
    run_folder.CUTS: {"export", "bench", "plan"},
    run_folder.WEIGHTS: {"export", "bench", "plan"},
    run_folder.DENSE: {"bench"},
    run_folder.REPORT: {"report", "json", "diff", "export", "bench", "plan"},
    run_folder.LOG: set(),
    run_folder.PAGE: set(),
    run_folder.HTML: set(),
}
"""file -> commands that cannot do without it"""


@pytest.mark.parametrize("name", NEEDS)
@pytest.mark.parametrize(
    "how",
    ["missing", "a folder", "a link to nowhere", "a link to itself", "a pipe", "an endless device", "empty"],
)
def test_each_file_in_turn_that_is_no_file(made: Path, name: str, how: str) -> None:
    run = fresh(made)
    path = run / name
    path.unlink()
    match how:
        case "a folder":
            path.mkdir()
        case "a link to nowhere":
            path.symlink_to("nowhere")
        case "a link to itself":
            path.symlink_to(path.name)
        case "a pipe":
            os.mkfifo(path)
        case "an endless device":
            path.symlink_to("/dev/zero")
        case "empty":
            path.write_bytes(b"")
    for command in sorted(NEEDS[name] | {"report", "runs", "export"}):
        check(f"{name} {how}", ON_RUN[command], fails=command in NEEDS[name])


WEIGHTS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], str]] = {
    "NaN": (
        lambda s: {**s, "conv1.weight": s["conv1.weight"] * float("nan")},
        "is damaged: 'conv1.weight' holds NaN or infinity",
    ),
    "infinity": (lambda s: {**s, "fc.bias": s["fc.bias"] / 0}, "is damaged: 'fc.bias' holds NaN or infinity"),
    "another architecture": (
        lambda s: {f"x.{k}": v for k, v in s.items()},
        "does not fit the rebuilt model: 'conv1.weight' is missing",
    ),
    "other shapes": (
        lambda s: {k: v.repeat(2) if v.dim() == 1 else v for k, v in s.items()},
        "does not fit the rebuilt model: '",
    ),
    "other types": (lambda s: {k: v.double() for k, v in s.items()}, "is float64 "),
    "none": (lambda s: {}, "does not fit the rebuilt model: 'conv1.weight' is missing"),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_are_not_the_models_are_refused(made: Path, name: str) -> None:
    change, known = WEIGHTS[name]
    run = fresh(made)
    save_file(
        {k: v.contiguous() for k, v in change(load_file(run / run_folder.WEIGHTS)).items()},
        run / run_folder.WEIGHTS,
    )
    signed(run)
    for command in ("export", "bench", "plan"):
        check(name, ON_RUN[command], fails=True, known=known)


@pytest.mark.parametrize(
    "name",
    [
        run_folder.LOG,
        run_folder.LOCK,
        f".{run_folder.STATE}.tmp",
        f".{run_folder.CHECKPOINT}.tmp",
        run_folder.STATE,
    ],
)
def test_links_in_a_run_folder_lead_to_nothing_being_overwritten(made: Path, name: str) -> None:
    precious = Path("precious").resolve()
    run = fresh(made, "halted")
    precious.write_bytes((run / name).read_bytes() if name == run_folder.STATE else b"precious")
    before = precious.read_bytes()
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(precious)
    said("apply", "--resume", "run", "--quiet")
    assert precious.read_bytes() == before


@pytest.mark.parametrize(
    "build",
    [
        "os.system",
        "os:system",
        "builtins.exec",
        "subprocess.run",
        "shutil.rmtree",
        "sparsify.runs.run_folder.os",
        "tempfile.mkdtemp",
    ],
)
def test_a_recipe_in_a_run_names_no_command(made: Path, build: str) -> None:
    args = {
        "command": f"touch {CREATED}",
        "source": f"open('{CREATED}', 'w')",
        "args": ["touch", str(CREATED)],
        "path": "sound",
        "prefix": str(CREATED),
    }
    for name, value in args.items():
        run = fresh(made)
        recipe = (
            re.sub(r"model:.*\n(  .*\n)*", "", (run / run_folder.RECIPE).read_text())
            + f"\nmodel: {json.dumps({'build': build, 'args': {name: value}})}\n"
        )
        (run / run_folder.RECIPE).write_text(recipe)
        signed(run)
        check(build, ON_RUN["export"], fails=True, known=f"model.build '{build}'")
    assert Path("sound/report.json").exists()


def test_escape_sequences_are_shown_and_not_obeyed(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = fresh(made)
    body = json.loads((run / run_folder.REPORT).read_bytes())
    body["title"] = "\x1b[2Jgone"
    body["latency"][0] |= {
        "speedup": 1.5,
        "low": 1.4,
        "high": 1.6,
    }  # the words for it decide how wide the other columns are
    (run / run_folder.REPORT).write_text(json.dumps(body))
    cuts = json.loads((run / run_folder.CUTS).read_bytes())
    narrow(tensor="\x1b[2Jgone")(cuts)
    (run / run_folder.CUTS).write_text(json.dumps(cuts))
    signed(run)
    for arguments in (
        ("report", "run"),
        ("report", "run", "--md"),
        ("runs", "."),
        ("export", "run", "--format", "safetensors"),
    ):
        exit_code(list(arguments))
        out, err = capsys.readouterr()
        assert "\x1b" not in out + err and "gone" in out + err, arguments
