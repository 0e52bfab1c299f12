"""What `layout: channels_last` and `recompute_activations` change of a training step: time and memory.

    python tests/benchmarks/train_step.py [--depth 56] [--batch 128] [--rounds 5]

A ResNet for CIFAR in float32, one thread, SGD with momentum. Each round takes one step of every way; the
median over the rounds is given. Memory is what autograd keeps for the backward pass and what blocks are
given, weights aside.
"""

import argparse
import statistics
import time
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from sparsify.models.cifar_resnets import cifar_resnet
from sparsify.training.layout import order_inputs, order_weights
from sparsify.training.recompute import find_blocks, recompute_activations

WAYS = {"plain": (None, False), "channels_last": ("channels_last", False), "recomputed": (None, True)}


class Step:
    """A training step in one way."""

    def __init__(self, depth: int, layout: str | None, recompute: bool) -> None:
        torch.manual_seed(0)
        self.model = cifar_resnet(depth).train()
        order_weights(self.model, layout)
        self.layout, self.recompute = layout, recompute
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)

    def take(self, x: Tensor, y: Tensor) -> float:
        """Its seconds."""
        started = time.perf_counter()
        with recompute_activations(self.model) if self.recompute else nullcontext():
            self.optimizer.zero_grad()
            F.cross_entropy(self.model(order_inputs(x, self.layout)), y).backward()
            self.optimizer.step()
        return time.perf_counter() - started

    def count_bytes(self, x: Tensor) -> int:
        """Of the distinct memories that are kept between the passes."""
        own = {p.untyped_storage().data_ptr() for p in self.model.parameters()}
        kept: list[Tensor] = []

        def keep(tensor: Tensor) -> Tensor:
            kept.append(tensor)
            return tensor

        blocks: list[nn.Module] = list(find_blocks(self.model).values())
        handles = [
            block.register_forward_pre_hook(lambda _module, given: kept.extend(given)) for block in blocks
        ]
        with (
            recompute_activations(self.model) if self.recompute else nullcontext(),
            saved_tensors_hooks(keep, lambda tensor: tensor),
        ):
            self.model(order_inputs(x, self.layout))
        for handle in handles:
            handle.remove()
        sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
        return sum(size for place, size in sizes.items() if place not in own)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--depth", type=int, default=56)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    x, y = torch.randn(asked.batch, 3, 32, 32), torch.arange(asked.batch) % 10
    steps = {name: Step(asked.depth, *way) for name, way in WAYS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(asked.rounds + 2):
        for name, step in steps.items():
            taken = step.take(x, y)
            if turn >= 2:  # the first two warm up
                seconds[name].append(taken)
    plain = statistics.median(seconds["plain"])
    print("| way | s a step | of the plain one | MiB kept |\n|---|---|---|---|")
    for name, step in steps.items():
        median = statistics.median(seconds[name])
        print(f"| {name} | {median:.2f} | {median / plain:.2f} | {step.count_bytes(x) / 2**20:.0f} |")


if __name__ == "__main__":
    main()
