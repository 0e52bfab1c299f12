"""Dense and cut model in floats and in eight-bit integers, side by side: file size, accuracy, milliseconds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sparsify.cost.measure import resize_batch
from sparsify.cost.measure.onnx_export import export_onnx, silence_torch
from sparsify.cost.measure.onnx_quantize import quantise
from sparsify.cost.measure.runtimes import prepare_onnx, to_arrays, use_threads
from sparsify.cost.measure.timing import choose_clock, time_interleaved
from sparsify.data import Datasets, Examples, batches
from sparsify.forward.calls import Inputs, list_calls, simplify_inputs
from sparsify.runs.measurement_cache import Figures, Parts, sha256
from sparsify.training.objective import are_right
from sparsify_schemas.report import Form, Integers
from sparsify_schemas.target import Cpu, Target

Model = Literal["dense", "cut"]
Dtype = Literal["float32", "int8"]
EXAMPLES = 256
"""training examples on which ranges are found"""
_BATCH = 64


@dataclass(frozen=True)
class _File:
    """An ONNX file that takes any batch."""

    model: Model
    dtype: Dtype
    content: bytes

    @cached_property
    def digest(self) -> str:
        return sha256(self.content)


def in_int8(targets: Mapping[str, Target]) -> dict[str, Cpu]:
    """The targets that compute in integers and are here."""
    return {
        name: t for name, t in targets.items() if isinstance(t, Cpu) and t.dtype == "int8" and t.table is None
    }


def integers(
    dense: nn.Module,
    cut: nn.Module,
    inputs: Inputs,
    datasets: Datasets | None,
    targets: Mapping[str, Cpu],
    seconds: float,
    seed: int,
    parts: Parts,
) -> tuple[Integers, bytes]:
    """The four forms, timed interleaved on each target for about `seconds`; and the cut model in integers, as ONNX.

    Each file, its accuracies, and the times of all four on one target are parts, made where `parts` does not have them yet.
    Raises ModelError where a model cannot be exported or quantised, RunError where a part is damaged.
    Ranges are found on training examples drawn by the seed, without augmentation; on `inputs` where there is no data.
    """
    inputs = simplify_inputs((list_calls(inputs)[0],))  # a file holds one call
    fed = ranges(inputs, datasets, seed)
    floats = (_floats("dense", dense, inputs, parts), _floats("cut", cut, inputs, parts))
    made = (*floats, *(_quantised(file, fed, parts) for file in floats))
    ms = {name: _timed(made, inputs, target, seconds, seed, parts) for name, target in targets.items()}
    right = [_accuracies(file, datasets, parts) for file in made]
    forms = (
        Form.model_validate(
            {
                "model": file.model,
                "dtype": file.dtype,
                "bytes": len(file.content),
                "ms": {name: found[at] for name, found in ms.items()},
                "validation_accuracy": right[at][0],
                "test_accuracy": right[at][1],
            }
        )
        for at, file in enumerate(made)
    )
    return Integers(
        examples=sum(len(batch[0]) for batch in fed) if datasets else 0, forms=tuple(forms)
    ), made[-1].content


def _floats(name: Model, model: nn.Module, inputs: Inputs, parts: Parts) -> _File:
    with torch.random.fork_rng(devices=[]):
        return _File(name, "float32", parts.content(f"{name}.float32.onnx", lambda: exported(model, inputs)))


def _quantised(floats: _File, fed: Sequence[list[NDArray[Any]]], parts: Parts) -> _File:
    return _File(
        floats.model,
        "int8",
        parts.content(f"{floats.model}.int8.onnx", lambda: quantise(floats.content, fed)),
    )


def ranges(inputs: Inputs, datasets: Datasets | None, seed: int) -> list[list[NDArray[Any]]]:
    """The batches that ranges are found on: training examples drawn by the seed, without augmentation; `inputs` without data."""
    if datasets is None:
        return [to_arrays(inputs)]
    chosen = torch.randperm(len(datasets.train), generator=torch.Generator().manual_seed(seed))[:EXAMPLES]
    return [[x.numpy()] for x, _ in batches(datasets.train[chosen.sort().values], _BATCH)]


def exported(model: nn.Module, inputs: Inputs) -> bytes:
    """As ONNX, for any batch; for the given one where the model takes no other. Raises ModelError."""
    with silence_torch():
        file: bytes = export_onnx(
            model, resize_batch(inputs, 2), resize_batch(inputs, 3)
        ).model_proto.SerializeToString()
    return file


def _timed(
    files: Sequence[_File], inputs: Inputs, target: Cpu, seconds: float, seed: int, parts: Parts
) -> Figures:
    """Milliseconds of each, in the order of the files: one part, as only what was timed interleaved may be compared."""
    text = " ".join([target.model_dump_json(), *(file.digest for file in files)])
    return parts.figures(
        f"times {sha256(text.encode())}",
        len(files),
        lambda: _interleaved(files, inputs, target, seconds, seed),
    )


def _interleaved(files: Sequence[_File], inputs: Inputs, target: Cpu, seconds: float, seed: int) -> Figures:
    as_it_is = target.model_copy(update={"dtype": "float32"})  # what is to be in integers is so already
    given = to_arrays(resize_batch(inputs, target.batch))
    with use_threads(target):
        calls = [prepare_onnx(file.content, given, as_it_is) for file in files]
        rounds = time_interleaved(calls, seconds, np.random.default_rng(seed), choose_clock(target))
    return tuple(float(s) * 1e3 for s in np.median(rounds, axis=0))


def _accuracies(file: _File, datasets: Datasets | None, parts: Parts) -> Figures:
    """On the validation and on the test set."""
    if datasets is None:
        return None, None
    return parts.figures(
        f"accuracies {file.digest}",
        2,
        lambda: (_accuracy(file, datasets.validation), _accuracy(file, datasets.test)),
    )


def _accuracy(file: _File, examples: Examples) -> float | None:
    """The share classified rightly; None without examples."""
    if not len(examples):
        return None
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = max(1, torch.get_num_threads()), 4
    session = onnxruntime.InferenceSession(file.content, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    hits = 0
    for x, y in batches(examples, _BATCH):
        outputs = torch.from_numpy(session.run(None, {name: x.numpy()})[0])
        hits += int(are_right(outputs, y).sum())
    return hits / len(examples)
