"""Targets: named hardware on which dense and cut model are timed side by side."""

from typing import Literal

from sparsify_schemas.base import Positive, Spec


class Cpu(Spec):
    """This machine's processor. Dense and cut model run interleaved; the report gives the median ratio and its interval."""

    kind: Literal["cpu"]
    runtime: Literal["eager"] = "eager"
    """what executes the model: eager PyTorch"""
    threads: Positive = 1
    """intra-op threads"""
    batch: Positive = 1
    """examples per forward call"""


Target = Cpu
