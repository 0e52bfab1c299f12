"""Targets: named hardware on which dense and cut model are timed side by side."""

from typing import Annotated, Literal

from pydantic import Field

from sparsify_schemas.base import Positive, Spec

Threads = Annotated[int, Field(strict=True, ge=1, le=1024)]


class Cpu(Spec):
    """This machine's processor. Dense and cut model run interleaved; the report gives the median ratio and its interval."""

    kind: Literal["cpu"]
    runtime: Literal["eager"] = "eager"
    """what executes the model: eager PyTorch"""
    threads: Threads = 1
    """intra-op threads"""
    batch: Positive = 1
    """examples per forward call"""


Target = Cpu
