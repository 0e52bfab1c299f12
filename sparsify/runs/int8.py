"""Compare the dense and the cut model in float32 and in int8: file size, accuracy, milliseconds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sparsify.cost.measure.onnx_export import export_onnx, silence_torch
from sparsify.cost.measure.onnx_quantize import quantise
from sparsify.cost.measure.runtimes import prepare_onnx, to_arrays, use_threads
from sparsify.cost.measure.timing import choose_clock, time_interleaved
from sparsify.data import Datasets, Examples, batches
from sparsify.forward.calls import Inputs, as_arguments, list_calls, resize_batch, simplify_inputs
from sparsify.objective.objective import Objective, evaluate
from sparsify.runs.measurement_cache import Figures, MeasurementCache, hash_text
from sparsify_schemas.report import Form, Integers
from sparsify_schemas.target import Cpu, Target

Model = Literal["dense", "cut"]
Dtype = Literal["float32", "int8"]
EXAMPLES = 256
"""Training examples that activation ranges are calibrated on."""
_BATCH = 64


@dataclass(frozen=True)
class _File:
    """An ONNX file that takes any batch size."""

    model: Model
    dtype: Dtype
    content: bytes

    @cached_property
    def digest(self) -> str:
        return hash_text(self.content)


def select_int8(targets: Mapping[str, Target]) -> dict[str, Cpu]:
    """The targets that compute in int8 on this machine."""
    cpus = {name: target for name, target in targets.items() if isinstance(target, Cpu)}
    return {name: cpu for name, cpu in cpus.items() if cpu.dtype == "int8" and cpu.table is None}


def compare_int8(
    dense: nn.Module,
    cut: nn.Module,
    inputs: Inputs,
    datasets: Datasets | None,
    objective: Objective,
    targets: Mapping[str, Cpu],
    seconds: float,
    seed: int,
    cache: MeasurementCache,
) -> tuple[Integers, bytes]:
    """Compare four files: dense and cut model, each in float32 and in int8.

    Returns the rows and the int8 cut model.

    The four are timed in turn on each target for about `seconds`. Activation ranges are calibrated on
    training examples drawn by the seed, without augmentation; on `inputs` where there is no data. Each file,
    its accuracies, and the times of all four on one target are kept in `cache`, so an interrupted comparison
    resumes. Raises ModelError where a model cannot be exported or quantized, RunError where a part of the
    cache is damaged.
    """
    inputs = simplify_inputs((list_calls(inputs)[0],))  # a file holds one call
    calibration = calibration_batches(inputs, datasets, seed)
    floats = [_export_float("dense", dense, inputs, cache), _export_float("cut", cut, inputs, cache)]
    files = [*floats, *(_quantize(file, calibration, cache) for file in floats)]
    ms = {name: _time_files(files, inputs, target, seconds, seed, cache) for name, target in targets.items()}
    forms = []
    for index, file in enumerate(files):
        validation, test = _judge(file, datasets, objective, cache)
        form = {
            "model": file.model,
            "dtype": file.dtype,
            "bytes": len(file.content),
            "ms": {name: times[index] for name, times in ms.items()},
            "validation_metric": validation,
            "test_metric": test,
        }
        forms.append(Form.model_validate(form))
    examples = sum(len(batch[0]) for batch in calibration) if datasets else 0
    return Integers(examples=examples, forms=tuple(forms)), files[-1].content


def _export_float(name: Model, model: nn.Module, inputs: Inputs, cache: MeasurementCache) -> _File:
    with torch.random.fork_rng(devices=[]):
        content = cache.get_file(f"{name}.float32.onnx", lambda: export_onnx_bytes(model, inputs))
    return _File(name, "float32", content)


def _quantize(floats: _File, calibration: Sequence[list[NDArray[Any]]], cache: MeasurementCache) -> _File:
    name = f"{floats.model}.int8.onnx"
    return _File(floats.model, "int8", cache.get_file(name, lambda: quantise(floats.content, calibration)))


def calibration_batches(inputs: Inputs, datasets: Datasets | None, seed: int) -> list[list[NDArray[Any]]]:
    """The batches that activation ranges are calibrated on.

    They are training examples drawn by the seed, without augmentation; `inputs` where there is no data.
    """
    if datasets is None:
        return [to_arrays(inputs)]
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(datasets.train), generator=generator)[:EXAMPLES].sort().values
    return [to_arrays(as_arguments(x)) for x, _ in batches(datasets.train[chosen], _BATCH)]


def export_onnx_bytes(model: nn.Module, inputs: Inputs) -> bytes:
    """Export to ONNX for any batch size, or for the given one where the model takes no other.

    Raises ModelError.
    """
    with silence_torch():
        program = export_onnx(model, resize_batch(inputs, 2), resize_batch(inputs, 3))
        file: bytes = program.model_proto.SerializeToString()
    return file


def _time_files(
    files: Sequence[_File], inputs: Inputs, target: Cpu, seconds: float, seed: int, cache: MeasurementCache
) -> Figures:
    """Milliseconds of each file.

    They are one part of the cache: only what was timed in turn may be compared.
    """
    key = hash_text(" ".join([target.model_dump_json(), *(file.digest for file in files)]).encode())
    return cache.get_figures(
        f"times {key}", len(files), lambda: _time_interleaved(files, inputs, target, seconds, seed)
    )


def _time_interleaved(
    files: Sequence[_File], inputs: Inputs, target: Cpu, seconds: float, seed: int
) -> Figures:
    # Otherwise the int8 files would be quantized once more.
    as_is = target.model_copy(update={"dtype": "float32"})
    given = to_arrays(resize_batch(inputs, target.batch))
    with use_threads(target):
        calls = [prepare_onnx(file.content, given, as_is) for file in files]
        rounds = time_interleaved(calls, seconds, np.random.default_rng(seed), choose_clock(target))
    return tuple(float(s) * 1e3 for s in np.median(rounds, axis=0))


def _judge(file: _File, datasets: Datasets | None, objective: Objective, cache: MeasurementCache) -> Figures:
    """The deciding metric on the validation and on the test set."""
    if datasets is None:
        return None, None
    sets = (datasets.validation, datasets.test)
    key = f"accuracies {file.digest}"
    return cache.get_figures(key, 2, lambda: tuple(_judge_on(file, examples, objective) for examples in sets))


def _judge_on(file: _File, examples: Examples, objective: Objective) -> float | None:
    """The deciding metric; None without examples."""
    if not len(examples):
        return None
    return evaluate(_OnnxModel(file.content), examples, objective, _BATCH).deciding


class _OnnxModel(nn.Module):
    """An ONNX file called as the model that it was made from."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = max(1, torch.get_num_threads()), 4
        self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The only output, or all of them by name."""
        names = [given.name for given in self._session.get_inputs()]
        values = [*args, *(kwargs[name] for name in names if name in kwargs)]
        feeds = {name: value.numpy() for name, value in zip(names, values, strict=False)}
        outputs = [torch.from_numpy(value) for value in self._session.run(None, feeds)]
        if len(outputs) == 1:
            return outputs[0]
        return dict(zip((made.name for made in self._session.get_outputs()), outputs, strict=True))
