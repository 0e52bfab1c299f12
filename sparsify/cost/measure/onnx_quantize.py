"""Quantise an ONNX file to eight-bit integers: static quantisation by ONNX Runtime."""

import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from sparsify.cost.measure.onnx_export import silence_torch
from sparsify.cost.measure.onnx_inputs import Entry, is_quantised, list_entries
from sparsify.errors import ModelError, describe_error


def quantise(file: bytes, batches: Iterable[Sequence[NDArray[Any]]]) -> bytes:
    """Quantise weights to int8 by output channel, activations to uint8 by their range in `batches`.

    x86 multiplies uint8 by int8 faster. The file marks quantisation by pairs of nodes around what is
    computed in integers, as ONNX Runtime and OpenVINO read it. An already quantised file is returned as it
    is. Raises ModelError.
    """
    import onnx
    from onnxruntime import quantization

    if is_quantised(onnx.ModelProto.FromString(file)):
        return file
    entries = list_entries(file)

    class Batches(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = (_name_arrays(entries, batch) for batch in batches)

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            return next(self.left, None)

    with tempfile.TemporaryDirectory() as folder, silence_torch():
        source, simple, target = (
            os.fspath(Path(folder) / f"{name}.onnx") for name in ("model", "simple", "int8")
        )
        Path(source).write_bytes(file)
        try:
            quantization.shape_inference.quant_pre_process(source, simple, skip_symbolic_shape=True)
            types = {
                "activation_type": quantization.QuantType.QUInt8,
                "weight_type": quantization.QuantType.QInt8,
            }
            quantization.quantize_static(simple, target, Batches(), per_channel=True, **types)
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(f"ONNX Runtime cannot quantise the model: {describe_error(error)}") from error
        return Path(target).read_bytes()


def _name_arrays(entries: Sequence[Entry], batch: Sequence[NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The arrays by the names of the inputs. Raises ModelError for a shape that the file does not take."""
    for entry, array in zip(entries, batch, strict=True):
        for axis, (size, given) in enumerate(zip(entry.sizes, array.shape, strict=True)):
            if isinstance(size, int) and size != given:
                raise ModelError(
                    f"int8: axis {axis} of '{entry.name}' is {given} in the training examples, and the ONNX "
                    f"file takes {size} alone; leave that axis open (--dynamic {entry.name}:{axis}=size), or "
                    "give examples of one size"
                )
    return {entry.name: array for entry, array in zip(entries, batch, strict=True)}
