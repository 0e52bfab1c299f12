"""Targets: named hardware and what executes the model there. Dense and cut model are timed on it side by
side.

A target is written out, or named: `targets: {server: onnxruntime}` takes the preset `onnxruntime`. `sparsify
targets` lists the presets and says what is installed here.
"""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from sparsify_schemas.base import AtKey, Positive, Spec, Text

Threads = Annotated[int, Field(strict=True, ge=1, le=1024)]
Layout = Literal["contiguous", "channels_last"]


class Cpu(Spec):
    """A processor. Dense and cut model run interleaved; the report gives the median ratio and its
    interval."""

    kind: Literal["cpu"]
    runtime: Literal["eager", "compile", "onnxruntime", "openvino"] = "eager"
    """what executes the model: eager PyTorch, torch.compile, or the exported ONNX file in ONNX Runtime or
    OpenVINO"""
    threads: Threads = 1
    """intra-op threads"""
    batch: Positive = 1
    """examples per forward call"""
    dtype: Literal["float32", "bf16", "int8"] = "float32"
    """what weights and activations are computed in; OpenVINO is held to it; with int8 the report has dense
    and cut model in floats and integers, quantised on training examples"""
    layout: Layout = "contiguous"
    """memory order of images in PyTorch; ONNX Runtime and OpenVINO choose their own"""
    table: Text | None = None
    """measured table of a machine that is not here (`sparsify targets measure --out`); nothing is timed then,
    only predicted"""

    @model_validator(mode="after")
    def _can_be(self) -> "Cpu":
        exported = self.runtime in ("onnxruntime", "openvino")
        if self.dtype == "int8" and not exported:
            raise AtKey(
                "dtype", f"runtime '{self.runtime}' takes no int8; use runtime 'onnxruntime' or 'openvino'"
            )
        if self.dtype == "bf16" and self.runtime == "onnxruntime":
            raise AtKey(
                "dtype",
                "ONNX Runtime has no bf16 on a processor; use runtime 'openvino', 'compile' or 'eager'",
            )
        if self.layout != "contiguous" and exported:
            raise AtKey(
                "layout", f"runtime '{self.runtime}' chooses the memory order itself; leave 'layout' out"
            )
        return self


class Cuda(Spec):
    """An NVIDIA GPU in PyTorch. Dense and cut model run interleaved, each call waited for."""

    kind: Literal["cuda"]
    runtime: Literal["eager", "compile"] = "eager"
    """what executes the model: eager PyTorch or torch.compile"""
    batch: Positive = 1
    """examples per forward call"""
    dtype: Literal["float32", "bf16"] = "float32"
    """what weights and activations are computed in"""
    layout: Layout = "contiguous"
    """memory order of images"""
    table: Text | None = None
    """measured table of a machine that is not here; nothing is timed then, only predicted"""


Target = Annotated[Cpu | Cuda, Field(discriminator="kind")]


def _no_preset(value: object) -> object:
    if isinstance(value, str):  # `load` has put the known presets in place of their names
        raise ValueError(f"expected a target, or the name of a preset; there is no preset '{value}'")
    return value


Named = Annotated[Target, BeforeValidator(_no_preset, json_schema_input_type=Target | Text)]
"""a target, or the name of a preset in its place"""
