"""Callables of a user who is unlucky or hostile, for test_hostile_code."""

import os
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from sparsify.models import digits_cnn


class WithoutText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class NoException(BaseException):
    pass


def make_part(count: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 1, 8, 8, generator=generator), torch.arange(count) % 10


def exit_at_once() -> Any:
    sys.exit(0)


def raise_without_text() -> Any:
    raise WithoutText


def raise_no_exception() -> Any:
    raise NoException("odd")


class Negative(Dataset[Any]):
    def __len__(self) -> int:
        return -1

    def __getitem__(self, index: int) -> Any:
        return make_part(1)[0][0], 0


class Exiting(Dataset[Any]):
    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Any:
        sys.exit(0)


class Stubborn:
    def __array__(self, *_: Any, **__: Any) -> Any:
        sys.exit(0)


def negative_length() -> Any:
    return Negative(), Negative()


def exit_in_an_example() -> Any:
    return Exiting(), Exiting()


def exit_in_an_array() -> Any:
    return (Stubborn(), [0, 1]), make_part()


def on_meta() -> Any:
    return (torch.empty(10, 1, 8, 8, device="meta"), torch.zeros(10)), make_part()


def sparse() -> Any:
    return (torch.zeros(10, 1, 8, 8).to_sparse(), torch.zeros(10)), make_part()


def nested() -> Any:
    parts = torch.nested.nested_tensor([torch.zeros(2, 3), torch.zeros(3, 3)], layout=torch.jagged)
    return (parts, torch.zeros(2)), make_part()


def quantized() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that they are to go
        inputs = torch.quantize_per_tensor(torch.zeros(10, 4), 0.1, 0, torch.qint8)
    return (inputs, torch.zeros(10)), make_part()


def unsigned(dtype: str) -> Any:
    inputs, targets = make_part()
    pair = inputs.numpy(), targets.numpy().astype(dtype)
    return pair, pair


def unsigned16() -> Any:
    return unsigned("uint16")


def unsigned32() -> Any:
    return unsigned("uint32")


def unsigned64() -> Any:
    return unsigned("uint64")


def signed() -> Any:
    return unsigned("int64")


def noisy() -> Any:
    """Changes settings and prints in three ways."""
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(7)
    np.random.seed(7)
    print("printed")
    os.write(1, b"written\n")
    subprocess.run(["echo", "by a child"], check=True)
    return make_part(), make_part()


def build_and_exit() -> nn.Module:
    sys.exit(0)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = digits_cnn()


class ExitingNet(Net):
    def forward(self, x: Tensor) -> Tensor:
        sys.exit(0)


class WithoutTextNet(Net):
    def forward(self, x: Tensor) -> Tensor:
        raise WithoutText


class PrintingNet(Net):
    def forward(self, x: Tensor) -> Tensor:
        print("in forward")
        out: Tensor = self.net(x)
        return out


def exiting_loss(outputs: Any, targets: Any) -> Tensor:
    sys.exit(0)


def exiting_metric(outputs: Any, targets: Any) -> float:
    sys.exit(0)


def exiting_collate(examples: Any) -> Any:
    sys.exit(0)


def exiting_optimizer(parameters: Any, lr: float) -> Any:
    sys.exit(0)
