"""Dense and cut model in floats and in eight-bit integers, side by side: file size, accuracy, milliseconds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sparsify.data import Datasets, Examples, batches
from sparsify.graph import Inputs
from sparsify.measure import with_batch
from sparsify.measure.portable import onnx_program, quiet
from sparsify.measure.quantising import quantised
from sparsify.measure.running import arrays, prepared_onnx, threads
from sparsify.measure.timing import interleaved, undisturbed
from sparsify_schemas.report import Form, Integers
from sparsify_schemas.target import Cpu, Target

EXAMPLES = 256
"""training examples on which ranges are found"""
_BATCH = 64


@dataclass(frozen=True)
class _File:
    """An ONNX file that takes any batch."""

    model: str
    dtype: str
    content: bytes


def in_int8(targets: Mapping[str, Target]) -> dict[str, Cpu]:
    """The targets that compute in integers and are here."""
    return {name: t for name, t in targets.items() if isinstance(t, Cpu) and t.dtype == "int8" and t.table is None}


def integers(
    dense: nn.Module, cut: nn.Module, inputs: Inputs, datasets: Datasets | None, targets: Mapping[str, Cpu], seconds: float, seed: int
) -> tuple[Integers, bytes]:
    """The four forms, timed interleaved on each target for about `seconds`; and the cut model in integers, as ONNX.

    Raises ModelError where a model cannot be exported or quantised.
    Ranges are found on training examples drawn by the seed, without augmentation; on `inputs` where there is no data.
    """
    fed = list(_ranges(inputs, datasets, seed))
    with torch.random.fork_rng(devices=[]):
        floats = [_File(name, "float32", _exported(model, inputs)) for name, model in (("dense", dense), ("cut", cut))]
    files = [*floats, *(_File(f.model, "int8", quantised(f.content, fed)) for f in floats)]
    ms = {name: _timed(files, inputs, target, seconds, seed) for name, target in targets.items()}
    forms = (
        Form.model_validate(
            {
                "model": file.model,
                "dtype": file.dtype,
                "bytes": len(file.content),
                "ms": {name: found[at] for name, found in ms.items()},
                "validation_accuracy": datasets and _accuracy(file, datasets.validation),
                "test_accuracy": datasets and _accuracy(file, datasets.test),
            }
        )
        for at, file in enumerate(files)
    )
    return Integers(examples=sum(len(batch[0]) for batch in fed) if datasets else 0, forms=tuple(forms)), files[-1].content


def _ranges(inputs: Inputs, datasets: Datasets | None, seed: int) -> Sequence[list[NDArray[Any]]]:
    if datasets is None:
        return [arrays(inputs)]
    chosen = torch.randperm(len(datasets.train), generator=torch.Generator().manual_seed(seed))[:EXAMPLES]
    return [[x.numpy()] for x, _ in batches(datasets.train[chosen.sort().values], _BATCH)]


def _exported(model: nn.Module, inputs: Inputs) -> bytes:
    with quiet():
        file: bytes = onnx_program(model, with_batch(inputs, 2), with_batch(inputs, 3)).model_proto.SerializeToString()
    return file


def _timed(files: Sequence[_File], inputs: Inputs, target: Cpu, seconds: float, seed: int) -> list[float]:
    """Milliseconds of each, in the order of the files."""
    as_it_is = target.model_copy(update={"dtype": "float32"})  # what is to be in integers is so already
    given = arrays(with_batch(inputs, target.batch))
    with threads(target):
        calls = [prepared_onnx(file.content, given, as_it_is) for file in files]
        rounds = interleaved(calls, seconds, np.random.default_rng(seed), undisturbed(target))
    return [float(s) * 1e3 for s in np.median(rounds, axis=0)]


def _accuracy(file: _File, examples: Examples) -> float | None:
    """The share classified rightly; None without examples."""
    if not len(examples):
        return None
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = max(1, torch.get_num_threads()), 4
    session = onnxruntime.InferenceSession(file.content, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    hits = sum(int((session.run(None, {name: x.numpy()})[0].argmax(1) == y.numpy()).sum()) for x, y in batches(examples, _BATCH))
    return hits / len(examples)
