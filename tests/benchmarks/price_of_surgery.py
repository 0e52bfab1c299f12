"""What planning and cutting costs: processor time, and memory above the loaded model.

    python tests/benchmarks/price_of_surgery.py [--only PART ...] [--side ours|theirs ...] [--seconds 300]
    [--json FILE]
    python tests/benchmarks/price_of_surgery.py --show FILE

Ours: `sparsify.make_plan` and `sparsify.cut` with one rule (half of all filters where the network is one of
convolutions, else of all neurons, by magnitude), trial cuts and the proof included. Theirs: torch-pruning's
DependencyGraph with its magnitude pruner at ratio 0.5, the last Linear layer left whole; it proves nothing.

Each network and side runs in a process of its own, on one thread. The model has run once before the clock
starts, random weights except for SmolLM2's. Seconds are of the processor. Memory is the largest resident size
reached, less the size of the process with its loaded model, in copies of the weights. The ratio is
torch-pruning's seconds by ours. Chains are Linear(64, 64) and ReLU in turn; the exponent is that of time over
length, fitted to the three lengths. Networks on meta have shapes alone, and are planned, not cut.
"""

import argparse
import gc
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "zoo"))

import shim  # noqa: F401
import torch
from torch import Tensor, nn

CACHE = Path(os.environ.get("SPARSIFY_DATA", Path.home() / ".cache/sparsify"))
SIDES = ("ours", "theirs")
CHAINS = (100, 300, 1000)


@dataclass(frozen=True)
class Network:
    """How to make a network, and what it is called with."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], Mapping[str, Tensor] | tuple[Tensor, ...]]
    group: str = "filter"
    """the type of group that the rule names"""
    cuts: bool = True
    """whether it is cut; planned alone otherwise"""


@dataclass(frozen=True)
class Price:
    """One network and side."""

    name: str
    side: str
    plan: float = 0.0
    """seconds; of torch-pruning the graph"""
    cut: float = 0.0
    copies: float = 0.0
    """largest memory above the loaded model, in copies of its weights"""
    megabytes: float = 0.0
    """the weights"""
    left: float = 0.0
    """share of the parameters that is left"""
    failed: str = ""
    """why there is no price"""


def draw_images(size: int) -> tuple[Tensor, ...]:
    return (torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0)),)


def draw_tokens(vocabulary: int, length: int = 16) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"input_ids": torch.randint(0, vocabulary, (2, length), generator=generator)}


def build_torchvision(name: str, **given: Any) -> nn.Module:
    from torchvision import models

    made: nn.Module = getattr(models, name)(weights=None, **given)
    return made


def build_maxvit() -> nn.Module:
    """MaxViT-T for images of 64 x 64, in windows of 2 x 2 where the original has 7 x 7."""
    from torchvision.models import MaxVit

    return MaxVit(
        input_size=(64, 64),
        stem_channels=64,
        partition_size=2,
        block_channels=[64, 128, 256, 512],
        block_layers=[2, 2, 5, 2],
        head_dim=32,
        stochastic_depth_prob=0.2,
    )


def build_smollm2() -> nn.Module:
    from transformers import AutoModelForCausalLM

    made: nn.Module = AutoModelForCausalLM.from_pretrained(CACHE / "smollm2", use_cache=False)
    return made


def build_llama(width: int, hidden: int, blocks: int, heads: int, shared: int) -> nn.Module:
    """A Llama with random weights in bfloat16; shared: heads of keys and values."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        num_key_value_heads=shared,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


def build_in_bfloat16(build: Callable[[], nn.Module]) -> nn.Module:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        return build()
    finally:
        torch.set_default_dtype(before)


def build_on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return build()


def build_chain(length: int) -> nn.Module:
    layers = [part for _ in range(length) for part in (nn.Linear(64, 64), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def list_networks() -> dict[str, Network]:
    images = partial(draw_images, 64)
    tiny = partial(build_llama, 2048, 5632, 22, 32, 4)
    large = partial(build_llama, 4096, 11008, 32, 32, 32)
    found = {
        "MobileNetV2": Network(partial(build_torchvision, "mobilenet_v2"), images),
        "VGG-16": Network(partial(build_torchvision, "vgg16"), images),
        "ResNet-152": Network(partial(build_torchvision, "resnet152"), images),
        "RegNetY-400MF": Network(partial(build_torchvision, "regnet_y_400mf"), images),
        "ViT-B": Network(partial(build_torchvision, "vit_b_16", image_size=64), images, "neuron"),
        "ViT-L": Network(partial(build_torchvision, "vit_l_16", image_size=64), images, "neuron"),
        "Swin-v2-T": Network(partial(build_torchvision, "swin_v2_t"), images, "neuron"),
        "MaxViT": Network(build_maxvit, images, "neuron"),
        "SmolLM2-135M": Network(build_smollm2, partial(draw_tokens, 49152), "neuron"),
        "Llama 1.1B, bfloat16": Network(
            partial(build_in_bfloat16, tiny), partial(draw_tokens, 32000), "neuron"
        ),
        "Llama 6.7B on meta": Network(
            partial(build_on_meta, large), partial(draw_tokens, 32000), "neuron", cuts=False
        ),
    }
    for length in CHAINS:
        found[f"chain of {length}"] = Network(
            partial(build_chain, length), lambda: (torch.randn(2, 64),), "neuron"
        )
    return found


def call(model: nn.Module, inputs: Mapping[str, Tensor] | tuple[Tensor, ...]) -> Any:
    return model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)


def run_ours(model: nn.Module, network: Network) -> tuple[float, float, nn.Module]:
    """Seconds of the plan and of the cut, and the cut model."""
    import sparsify

    rule = {"layers": "*", "group": network.group, "sparsity": "50%", "criterion": {"kind": "magnitude"}}
    recipe = {"version": 1, "title": "price", "rules": [rule]}
    began = time.process_time()
    plan = sparsify.make_plan(recipe, model, network.inputs())
    planned = time.process_time()
    if not network.cuts:
        return planned - began, 0.0, model
    result = sparsify.cut(plan, model)
    return planned - began, time.process_time() - planned, result.model


def run_theirs(model: nn.Module, network: Network) -> tuple[float, float, nn.Module]:
    """Seconds of the graph and of the cut, and the model, which is cut in place."""
    import torch_pruning

    inputs = network.inputs()
    heads = [m for m in model.modules() if isinstance(m, nn.Linear)][-1:]
    began = time.process_time()
    pruner = torch_pruning.pruner.BasePruner(
        model,
        inputs if isinstance(inputs, Mapping) else tuple(inputs),
        importance=torch_pruning.importance.GroupMagnitudeImportance(),
        pruning_ratio=0.5,
        ignored_layers=heads,
        output_transform=lambda out: out.logits.sum() if hasattr(out, "logits") else out,
    )
    built = time.process_time()
    if network.cuts:
        pruner.step()
    return built - began, time.process_time() - built, model


def read_status(field: str) -> int:
    """A size from the process' own status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1]) * 1024


def measure(name: str, side: str) -> Price:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    import_side(side)
    network = list_networks()[name]
    model = network.build().eval()
    if not any(p.is_meta for p in model.parameters()):
        with torch.no_grad():
            call(model, network.inputs())
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    dense = sum(p.numel() for p in model.parameters())
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the largest resident size counts from here on
    before = read_status("VmRSS")
    run = run_ours if side == "ours" else run_theirs
    try:
        planned, cut, thin = run(model, network)
    except Exception as error:
        line = (str(error).strip().splitlines() or [""])[0]
        return Price(name, side, megabytes=size / 2**20, failed=f"{type(error).__name__}: {line}"[:160])
    above = read_status("VmHWM") - before
    left = sum(p.numel() for p in thin.parameters()) / dense
    return Price(name, side, planned, cut, above / size, size / 2**20, left)


def import_side(side: str) -> None:
    """Import what would be imported on the clock otherwise."""
    if side == "ours":
        import sparsify.pruning.cut
        import sparsify.pruning.make_plan  # noqa: F401
    else:
        import torch_pruning  # noqa: F401


def measure_apart(name: str, side: str, seconds: float) -> Price:
    """The price, measured in a fresh process with a limit of processor time."""
    limit = (int(seconds), int(seconds) + 5)
    ran = subprocess.run(
        [sys.executable, __file__, "--one", name, side],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, limit),
    )
    if ran.returncode == 0:
        return Price(**json.loads(ran.stdout.splitlines()[-1]))
    killed = ran.returncode in (-9, 137)
    why = "killed for its memory" if killed else f"more than {seconds:g} s of processor time"
    return Price(name, side, failed=why)


def fit_exponent(prices: list[Price]) -> float | None:
    """b of seconds = a * length ** b, by least squares of the logarithms; None without all lengths."""
    times = {price.name: price.plan + price.cut for price in prices if not price.failed}
    if not all(f"chain of {length}" in times for length in CHAINS):
        return None
    lengths = torch.tensor(CHAINS, dtype=torch.float64).log()
    logs = torch.tensor([times[f"chain of {length}"] for length in CHAINS], dtype=torch.float64).log()
    lengths, logs = lengths - lengths.mean(), logs - logs.mean()
    return float((lengths @ logs) / (lengths @ lengths))


def show(prices: list[Price]) -> None:
    """The table of the docs, and the exponents."""
    known = {(price.name, price.side): price for price in prices}
    print("| network | plan | cut | copies | left | torch-pruning | copies | left | ratio |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in dict.fromkeys(price.name for price in prices):
        ours, theirs = known.get((name, "ours")), known.get((name, "theirs"))
        ratio = ""
        if ours and theirs and not ours.failed and not theirs.failed:
            ratio = f"{(theirs.plan + theirs.cut) / (ours.plan + ours.cut):.2f}"
        print("|", " | ".join([name, *_cells(ours, apart=True), *_cells(theirs, apart=False), ratio]), "|")
    for side in SIDES:
        power = fit_exponent([price for price in prices if price.side == side])
        if power is not None:
            print(f"\nchains, {side}: seconds grow with the length to the power {power:.2f}")


def _cells(price: Price | None, apart: bool) -> list[str]:
    empty = [""] * (4 if apart else 3)
    if price is None:
        return empty
    if price.failed:
        return [price.failed.replace("|", "/"), *empty[1:]]
    spent = [f"{price.plan:.2f} s", f"{price.cut:.2f} s"] if apart else [f"{price.plan + price.cut:.2f} s"]
    shape_only = price.name.endswith("on meta")
    return [*spent, "" if shape_only else f"{price.copies:.1f}", "" if shape_only else f"{price.left:.0%}"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", default=[""], help="parts of names")
    parser.add_argument("--side", nargs="*", default=list(SIDES), choices=SIDES)
    parser.add_argument("--seconds", type=float, default=300.0, help="limit of processor time, each")
    parser.add_argument("--json", type=Path, help="written, one line a price")
    parser.add_argument("--show", type=Path, help="print the table of such a file, and measure nothing")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(asdict(measure(*given.one))))
        return
    if given.show:
        show([Price(**json.loads(line)) for line in given.show.read_text().splitlines()])
        return
    prices = []
    for name in list_networks():
        if not any(part in name for part in given.only):
            continue
        for side in given.side:
            prices.append(measure_apart(name, side, given.seconds))
            print(prices[-1], file=sys.stderr, flush=True)
            if given.json:
                given.json.write_text("".join(json.dumps(asdict(price)) + "\n" for price in prices))
    show(prices)


if __name__ == "__main__":
    main()
