"""Networks of the zoo cut by torch-pruning, then adopted: from its history and from the narrower weights.

    python tests/zoo/adopted.py [--only tv own] [--seconds 60] [--json FILE] [--pin FILE]

Each network gets random weights; torch-pruning's MetaPruner takes 40 % of each layer by random scores, the
output layers left out as our own graph finds them. The source's outputs are computed before anything of ours
runs. Adopted by `sparsify.adopt`, the model that `sparsify.load_run` returns is called on the same inputs.
"""

import argparse
import json
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent))

import networks
import torch
from torch import Tensor, nn

import sparsify
from sparsify.forward.call_model import call_model, every_tensor
from sparsify.graph import build_map

EQUAL = 1e-5
"""largest difference of an output, of the largest output, in float32"""


def build(name: str) -> nn.Module:
    """A network of the zoo by its name, for recipes."""
    return networks.SOURCES[name.split(".")[0]]()[name].build()


@dataclass(frozen=True)
class CutElsewhere:
    """What torch-pruning left of a network."""

    recipe: Mapping[str, Any]
    dense: Path
    weights: Path
    history: Path
    outputs: tuple[Tensor, ...]
    inputs: Any


def cut_elsewhere(name: str, folder: Path, ratio: float = 0.4) -> CutElsewhere:
    """Cut a network by torch-pruning, and write what a user would have: weights and history."""
    import torch_pruning as tp

    entry = networks.SOURCES[name.split(".")[0]]()[name]
    torch.manual_seed(0)
    model = entry.build().eval()
    inputs = entry.inputs()
    torch.save(model.state_dict(), folder / "dense.pt")
    ends = [
        model.get_submodule(group.name)
        for group in build_map.build_map(model, inputs, {}).coupled
        if group.protected == "it feeds the network's output" and _is_module(model, group.name)
    ]
    for parameter in model.parameters():
        parameter.requires_grad_(True)  # what is frozen is invisible to torch-pruning
    pruner = tp.pruner.MetaPruner(
        model,
        inputs,
        importance=tp.importance.RandomImportance(),
        pruning_ratio=ratio,
        ignored_layers=ends,
        in_channel_groups={},
        out_channel_groups={},
        num_heads={},
    )
    pruner.step()
    model.eval()
    with torch.no_grad():
        outputs = tuple(every_tensor(call_model(model, inputs)))
    torch.save(model.state_dict(), folder / "cut.pt")
    (folder / "history.json").write_text(json.dumps(pruner.pruning_history()))
    recipe = {
        "version": 1,
        "title": name,
        "model": {"build": "adopted.build", "args": {"name": name}},
        "inputs": _describe(inputs),
        "targets": {"here": {"kind": "cpu", "runtime": "eager"}},
    }
    return CutElsewhere(
        recipe, folder / "dense.pt", folder / "cut.pt", folder / "history.json", outputs, inputs
    )


def _is_module(model: nn.Module, name: str) -> bool:
    return name in dict(model.named_modules())


def _describe(inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return {name: _describe_tensor(tensor) for name, tensor in inputs.items()}
    return [_describe_tensor(tensor) for tensor in inputs]


def _describe_tensor(tensor: Tensor) -> dict[str, Any]:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return {"shape": list(tensor.shape), "dtype": dtype, "values": tensor.tolist()}


def measure_difference(run: Path, source: CutElsewhere) -> float:
    """Largest difference between the outputs of the adopted model and those of the source."""
    with torch.no_grad():
        found = tuple(every_tensor(call_model(sparsify.load_run(run), source.inputs)))
    gaps = [0.0]
    for ours, theirs in zip(found, source.outputs, strict=True):
        if ours.shape != theirs.shape:
            return float("inf")
        if ours.numel():
            gaps.append(float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-30)))
    return max(gaps)


def adopt_both_ways(source: CutElsewhere, folder: Path) -> dict[str, str]:
    """From history and dense weights, and from the narrower weights beside the dense ones: the difference, or
    the message."""
    ways = {
        "history": {"history": source.history},
        "weights": {"model_file": source.weights},
    }
    found = {}
    for way, given in ways.items():
        try:
            run = sparsify.adopt(source.recipe, dense=source.dense, out=folder / "runs", timing=0.01, **given)
        except sparsify.SparsifyError as error:
            found[way] = str(error).replace(str(folder), "").splitlines()[0]
            continue
        difference = measure_difference(run, source)
        report = json.loads((run / "report.json").read_text())
        apart = any("cut apart" in note for note in report["notes"])
        found[way] = f"{difference:.0e}{', said to be cut apart' if apart else ''}"
    return found


@dataclass(frozen=True)
class Row:
    """One network."""

    name: str
    torch_pruning: str
    history: str = ""
    weights: str = ""


def name_outcome(said: str) -> str:
    """`equal`, `apart`, `differs` or `refused`, of what `adopt_both_ways` found."""
    number, _, more = said.partition(",")
    try:
        difference = float(number)
    except ValueError:
        return "refused"
    if not difference <= EQUAL:
        return "differs"
    return "apart" if more else "equal"


@contextmanager
def limit_seconds(seconds: int) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TimeoutError("timed out")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def make_row(name: str, seconds: int) -> Row:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        try:
            with limit_seconds(seconds):
                source = cut_elsewhere(name, folder)
        except Exception as error:
            return Row(name, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:80]}")
        if json.loads(source.history.read_text()) == []:
            return Row(name, "nothing cut")
        return Row(name, "cut", **adopt_both_ways(source, folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(networks.SOURCES))
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--pin", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    pins: dict[str, dict[str, str]] = {}
    for kind in options.only:
        family, _, part = kind.partition(":")
        for name in networks.SOURCES[family]():
            if part not in name:
                continue
            row = make_row(name, options.seconds)
            print(f"{row.name}: {row.torch_pruning} | {row.history} | {row.weights}", flush=True)
            if row.torch_pruning == "cut":
                pins[name] = {way: name_outcome(getattr(row, way)) for way in ("history", "weights")}
            if options.json:
                with options.json.open("a") as file:
                    file.write(json.dumps(asdict(row)) + "\n")
    if options.pin:
        lines = [f"{json.dumps(name)}: {json.dumps(pin)}" for name, pin in pins.items()]
        options.pin.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
