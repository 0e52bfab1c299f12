"""The zoo under torch-pruning alone, and what both cost.

    python tests/benchmarks/against_torch_pruning.py outcomes [--only PART ...] [--seconds 120] [--gigabytes
    9] [--json FILE] python tests/benchmarks/against_torch_pruning.py beside --ours FILE --theirs FILE python
    tests/benchmarks/against_torch_pruning.py speed [--rounds 7] python
    tests/benchmarks/against_torch_pruning.py growth python tests/benchmarks/against_torch_pruning.py memory

Outcomes: torch-pruning's BasePruner at ratio 0.5 with random importance, the network's output layers ignored
(found by our own graph: it cuts the classifier otherwise), each network in a process of its own. The pruner
works on a copy whose tensors hold the position of each of their elements, so that what is left tells which
elements stayed; with those values filled in, the result is compared in float64 with the dense network in
which everything else is zero.

    exact             difference at most 1e-9 of the largest output
    statistics        the same once normalisations leave the removed units out
    silently wrong    it runs, and computes something else, or returns other shapes
    forward broken    the result does not run: in eval mode, or in train mode where the dense network does
    raises            the pruner raises
    hang or memory    it did not end within the limits
    nothing cut       every tensor kept its shape, without a word

`beside` prints one table, in Markdown, of what `tests/zoo/table.py --json` and `outcomes --json` wrote.
Times are those of one process on one thread (CPU time), both sides in turn within a round, the ratio taken
per round.
"""

import argparse
import gc
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "zoo"))

import networks
import numpy as np
import table
import torch
from own import Dense
from torch import Tensor, nn

from sparsify.forward.call_model import call_model, convert_inputs, float_tensors
from sparsify.graph import build_map
from sparsify.graph.layer_types import layer_type
from sparsify.graph.names import canonical_names
from sparsify.graph.surgery import operations
from sparsify.graph.verify import masked_statistics, trial_cuts
from sparsify.graph.verify.run_models import relative_difference

TOLERANCE = 1e-9
Kept = Mapping[tuple[str, int], set[int]]


def pruner(model: nn.Module, inputs: networks.Inputs, ignored: list[nn.Module]) -> "object":
    import torch_pruning

    return torch_pruning.pruner.BasePruner(
        model,
        dict(inputs) if isinstance(inputs, Mapping) else inputs,
        importance=torch_pruning.importance.RandomImportance(),
        pruning_ratio=0.5,
        ignored_layers=ignored,
        in_channel_groups={},
        out_channel_groups={},
        num_heads={},
    )


def output_layers(model: nn.Module, inputs: networks.Inputs) -> list[str]:
    """Modules whose outputs are the network's own."""
    map = build_map.build_map(model, inputs, {})
    reasons = (
        "it feeds the network's output",
        "its rows are looked up by number",
    )  # the latter where the last layer is an embedding
    held = {
        (s.tensor, s.dim)
        for c in map.coupled
        if (c.protected or "").startswith(reasons)
        for s in c.slices
        if s.role == "out"
    }
    names = canonical_names(model)
    found = []
    for name, module in model.named_modules():
        row = layer_type(module)
        if row.timed in ("convolution", "linear") and (names.get(f"{name}.weight"), row.outputs) in held:
            found.append(name)
    return found


def slots(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, Tensor]]:
    """Every floating-point parameter and buffer under each of its names."""
    for prefix, module in model.named_modules():
        for attribute, value in [*module._parameters.items(), *module._buffers.items()]:
            if value is not None and value.is_floating_point():
                yield f"{prefix}.{attribute}" if prefix else attribute, module, attribute, value


def put(module: nn.Module, attribute: str, value: Tensor) -> None:
    if attribute in module._parameters:
        module._parameters[attribute] = nn.Parameter(value)
    else:
        module._buffers[attribute] = value


def judged(entry: networks.Entry) -> dict[str, object]:
    """One network: outcome, difference and a message."""
    torch.manual_seed(0)
    model, inputs = entry.build().eval(), entry.inputs()
    table.perturb(model, inputs)
    ignored = output_layers(model, inputs)
    dense, inputs = deepcopy(model).double().eval(), convert_inputs(inputs, torch.float64)
    del model
    wanted = outputs(dense, inputs)
    tagged = deepcopy(dense)
    with torch.no_grad():
        for _, _, _, value in slots(tagged):
            value.copy_(torch.arange(value.numel(), dtype=torch.float64).view(value.shape))
    torch.manual_seed(0)
    try:
        pruner(tagged, inputs, [tagged.get_submodule(n) for n in ignored]).step()
    except MemoryError:
        raise
    except Exception as error:
        return verdict("raises", error)
    thin, masked = tagged, deepcopy(dense)
    kept, changed = _filled(thin, dense, masked)
    if not changed:
        return {"outcome": "nothing cut"}
    try:
        found = outputs(thin.eval(), inputs)
    except Exception as error:
        return verdict("forward broken", error)
    if [t.shape for t in found] != [t.shape for t in wanted]:
        return {
            "outcome": "silently wrong",
            "message": (
                f"outputs of other shapes: {[tuple(t.shape) for t in found]} for "
                f"{[tuple(t.shape) for t in wanted]}"
            )[:200],
        }
    zeroed = outputs(masked, inputs)
    more = {
        "control": relative_difference(wanted, zeroed),
        "difference": relative_difference(found, zeroed),
    }
    try:
        _trains(thin, inputs)
    except Exception as error:
        try:
            _trains(dense, inputs)
        except Exception:
            pass
        else:
            return {**verdict("forward broken", error, "in train mode: "), **more}
    if more["difference"] <= TOLERANCE:
        return {"outcome": "exact", **more}
    gone = {slot: set(range(size)) - stayed for slot, (size, stayed) in kept.items() if len(stayed) < size}
    with torch.no_grad():
        more["difference"] = relative_difference(
            found, masked_statistics.run_without_removed(masked.eval(), inputs, gone)
        )
    return {"outcome": "statistics" if more["difference"] <= TOLERANCE else "silently wrong", **more}


def _filled(
    thin: nn.Module, dense: nn.Module, masked: nn.Module
) -> tuple[dict[tuple[str, int], tuple[int, set[int]]], bool]:
    """Values for positions in the cut network, zeros for what is gone in the masked one; (what stayed,
    anything cut)."""
    full = {name: value.detach() for name, _, _, value in slots(dense)}
    places = {name: (module, attribute) for name, module, attribute, _ in slots(masked)}
    kept, changed = {}, False
    for name, module, attribute, value in list(slots(thin)):
        original, at = full[name], value.detach().long()
        put(module, attribute, original.flatten()[at.flatten()].view(at.shape).clone())
        stays = torch.zeros(original.numel(), dtype=torch.bool)
        stays[at.flatten()] = True
        put(*places[name], torch.where(stays.view(original.shape), original, 0.0))
        if bool(stays.all()):
            continue
        changed = True
        for dim in range(original.dim()):
            along = stays.view(original.shape).movedim(dim, 0).reshape(original.shape[dim], -1).any(1)
            kept[name, dim] = (original.shape[dim], set(along.nonzero().flatten().tolist()))
    return kept, changed


def outputs(model: nn.Module, inputs: networks.Inputs) -> list[Tensor]:
    with torch.no_grad():
        torch.manual_seed(0)
        return list(float_tensors(call_model(model.eval(), inputs)))


def _trains(model: nn.Module, inputs: networks.Inputs) -> None:
    copy = deepcopy(model).train()
    sum(t.sum() for t in float_tensors(call_model(copy, inputs)) if t.requires_grad).backward()


def verdict(outcome: str, error: Exception, before: str = "") -> dict[str, object]:
    return {
        "outcome": outcome,
        "message": f"{before}{type(error).__name__}: {' '.join(str(error).split())}"[:200],
    }


def limited(entry: networks.Entry, gigabytes: float, seconds: float, out: Path) -> int:
    """The judgement in a forked process with limits of memory and time; its process id."""
    child = os.fork()
    if child:
        return child
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + int(gigabytes * 2**30),) * 2)
    resource.setrlimit(
        resource.RLIMIT_CPU, (int(seconds), int(seconds) + 5)
    )  # its own time: a busy machine is no hang
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        found = judged(entry)
    except MemoryError:
        found = {"outcome": "hang or memory", "message": f"more than {gigabytes:g} GB"}
    except Exception as error:
        memory = "allocate memory" in str(error) or "DefaultCPUAllocator" in str(error)
        found = (
            {"outcome": "hang or memory", "message": f"more than {gigabytes:g} GB"}
            if memory
            else verdict("not judged", error)
        )
    out.write_text(json.dumps(found))
    os._exit(0)


def outcomes(given: argparse.Namespace) -> None:
    import torch_pruning  # noqa: F401

    waiting = [
        (n, e)
        for n, e in networks.everything().items()
        if not given.only or any(part in n for part in given.only)
    ]
    order, found, running = [n for n, _ in waiting], {}, {}
    folder = Path(os.environ.get("TMPDIR", "/tmp")) / f"against.{os.getpid()}"
    folder.mkdir()
    while waiting or running:
        while waiting and len(running) < given.jobs:
            name, entry = waiting.pop(0)
            file = folder / f"{len(waiting)}.json"
            running[limited(entry, given.gigabytes, given.seconds, file)] = (name, file, time.monotonic())
        for child, (name, file, began) in list(running.items()):
            ended, status = os.waitpid(child, os.WNOHANG)
            if not ended:
                continue
            why = (
                f"more than {given.seconds:g} s"
                if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU
                else "killed for its memory"
            )
            found[name] = (
                json.loads(file.read_text())
                if file.exists()
                else {"outcome": "hang or memory", "message": why}
            )
            del running[child]
            found[name]["seconds"] = round(time.monotonic() - began, 1)
            row = found[name]
            print(
                (
                    f"{name:42} {row['outcome']:15} {row.get('difference', float('nan')):8.0e} "
                    f"{row['seconds']:6.1f}s {row.get('message', '')[:90]}"
                ),
                flush=True,
            )
        time.sleep(0.02)
    found = {name: found[name] for name in order}
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))
    print(dict(Counter(str(row["outcome"]) for row in found.values())))


def beside(given: argparse.Namespace) -> None:
    rows = [json.loads(line) for line in given.ours.read_text().splitlines()]
    mine = {row["name"]: row for row in rows if row["mode"] == "random" and row["planned"] == 1}
    other = json.loads(given.theirs.read_text())
    families = {
        "micro": "one construct each",
        "own": "small networks of our own",
        "further": "further networks of our own",
        "tv": "torchvision",
        "timm": "timm",
        "hf": "transformers",
    }
    ways = (
        "exact",
        "statistics",
        "silently wrong",
        "forward broken",
        "raises",
        "hang or memory",
        "nothing cut",
        "not judged",
    )
    print("| networks | | equal | statistics change | protected | broken |\n|---|---|---|---|---|---|")
    for kind, title in [*families.items(), ("", "all")]:
        rows = [row for name, row in mine.items() if name.startswith(kind)]
        counts = Counter(row["outcome"] for row in rows)
        known = [counts[outcome] for outcome in ("equal", "statistics change", "protected")]
        print("|", " | ".join(str(v) for v in (title, len(rows), *known, len(rows) - sum(known))), "|")
    print("\n| networks | |", " | ".join(ways), "|\n|" + "---|" * (len(ways) + 2))
    for kind, title in [*families.items(), ("", "all")]:
        counts = Counter(row["outcome"] for name, row in other.items() if name.startswith(kind))
        print(
            "|",
            " | ".join(str(v) for v in (title, sum(counts.values()), *(counts[way] for way in ways))),
            "|",
        )
    print(
        "\n"
        "| network | sparsify | difference | gone | groups cut | kept whole | torch-pruning | |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    for name, row in mine.items():
        found = other.get(name, {"outcome": "not run"})
        message = str(found.get("message", "")).replace("|", "/")
        note = (
            message[:80] + "…" * (len(message) > 80)
            if message
            else f"{found['difference']:.0e}"
            if "difference" in found
            else ""
        )
        print(
            f"| {name} | {row['outcome']} | {row['own']:.0e} | {row['gone']:.0%} | {row['cut']} | "
            f"{len(row['protected'] or {})} | {found['outcome']} | {note} |"
        )


def shaped(name: str) -> nn.Module:
    """A stock network of torchvision, or a vision transformer of ViT-L's shape for images of 64 x 64."""
    from torchvision import models as tv

    if name == "ViT-L shape":
        return tv.VisionTransformer(64, 16, 24, 16, 1024, 4096)
    return getattr(
        tv,
        {
            "ResNet-152": "resnet152",
            "MobileNetV2": "mobilenet_v2",
            "DenseNet-121": "densenet121",
            "DenseNet-201": "densenet201",
            "ResNet-50": "resnet50",
        }[name],
    )(weights=None)


INPUTS = (torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)),)


def ours(model: nn.Module, probing: bool) -> nn.Module:
    """Read the structure, choose the half of each group with the highest scores, cut."""
    map = build_map.build_map(model, INPUTS, {})
    if probing:
        map = trial_cuts.protect_failing_groups(model, map, INPUTS)
    return operations.cut(model, map, table.half(model, map, "random"), "bench")[0]


def theirs(model: nn.Module) -> None:
    head = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    pruner(model, INPUTS, [head]).step()


def spent(run: Callable[[], object]) -> float:
    """CPU seconds, on a heap without garbage: what came before is not collected on this one's time."""
    gc.collect()
    began = time.process_time()
    run()
    return time.process_time() - began


def speed(given: argparse.Namespace) -> None:
    import torch_pruning  # noqa: F401

    for name in given.only or ["MobileNetV2", "ResNet-152", "DenseNet-121", "DenseNet-201", "ViT-L shape"]:
        model = shaped(name).eval()
        times: dict[str, list[float]] = {"ours": [], "ours, with trial cuts": [], "torch-pruning": []}
        for number in range(given.rounds + 1):  # the first round warms up
            copy = deepcopy(model)
            runs: dict[str, Callable[[], object]] = {
                "ours": lambda model=model: ours(model, False),
                "ours, with trial cuts": lambda model=model: ours(model, True),
                "torch-pruning": lambda copy=copy: theirs(copy),
            }
            for key in random.Random(number).sample(list(runs), 3):
                took = spent(runs[key])
                if number:
                    times[key].append(took)
            del copy, runs
        for key in ("ours", "ours, with trial cuts"):
            ratios = [t / o for t, o in zip(times["torch-pruning"], times[key], strict=True)]
            low, middle, high = np.percentile(ratios, [0, 50, 100])
            print(
                (
                    f"{name:14} {key:22} {np.median(times[key]):7.2f} s  torch-pruning "
                    f"{np.median(times['torch-pruning']):7.2f} s  ratio {middle:.2f} ({low:.2f} to "
                    f"{high:.2f})"
                ),
                flush=True,
            )


def growth(_given: argparse.Namespace) -> None:
    """inspect, and torch-pruning's construction, on a densely connected network of rising depth.

    Every layer reads all layers before it: depth * (depth + 1) / 2 edges.
    """
    depths, rows = (16, 32, 48, 64), {}
    for depth in depths:
        model = Dense(depth, 12).eval()
        head = model.fc
        ways = {
            "ours": lambda m=model: build_map.build_map(m, INPUTS, {}),
            "torch-pruning": lambda m=model, head=head: pruner(m, INPUTS, [head]),
        }
        rows[depth] = {key: min(spent(way) for _ in range(3)) for key, way in ways.items()}
        print(
            depth,
            depth * (depth + 1) // 2,
            "edges",
            {key: round(value, 3) for key, value in rows[depth].items()},
            flush=True,
        )
    edges = np.log([depth * (depth + 1) / 2 for depth in depths])
    for key in ("ours", "torch-pruning"):
        power = np.polyfit(edges, np.log([rows[depth][key] for depth in depths]), 1)[0]
        print(f"{key}: time grows with the number of edges to the power {power:.2f}")


def memory(given: argparse.Namespace) -> None:
    """Largest resident memory above that of the model after one forward call, in copies of the model."""
    for name in given.only or ["ResNet-50", "ResNet-152", "DenseNet-201", "ViT-L shape"]:
        for way in ("ours", "ours, with trial cuts", "torch-pruning"):
            subprocess.run([sys.executable, __file__, "one-memory", "--only", name, way], check=True)


def one_memory(given: argparse.Namespace) -> None:
    import torch_pruning  # noqa: F401

    name, way = given.only
    model = shaped(name).eval()
    size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    with torch.no_grad():
        model(*INPUTS)
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    theirs(model) if way == "torch-pruning" else ours(model, "trial" in way)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(
        (
            f"{name:14} {way:22} {(after - before) / 2**20:7.0f} MiB = {(after - before) / size:.2f} "
            f"copies of {size / 2**20:.0f} MiB"
        ),
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ways = {
        "outcomes": outcomes,
        "beside": beside,
        "speed": speed,
        "growth": growth,
        "memory": memory,
        "one-memory": one_memory,
    }
    parser.add_argument("what", choices=ways)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--gigabytes", type=float, default=9)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    for option in ("--json", "--ours", "--theirs"):
        parser.add_argument(option, type=Path)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    given = parser.parse_args()
    ways[given.what](given)


if __name__ == "__main__":
    main()
