"""Time models against each other: those of a run, a torch.export program, an ONNX file.

Nothing in a file is executed.
"""

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from sparsify.cost.benchmark_result import BenchmarkResult
from sparsify.cost.measure import check_target
from sparsify.cost.measure.compare import compare_calls, pin_cores
from sparsify.cost.measure.onnx_export import short_reason, silence_torch
from sparsify.cost.measure.onnx_inputs import Entry, list_entries, read_onnx
from sparsify.cost.measure.onnx_reuse import Pattern
from sparsify.cost.measure.runtimes import (
    TimedCall,
    make_shared_pattern,
    prepare,
    prepare_onnx,
    to_arrays,
    use_threads,
)
from sparsify.data import data_for_inputs
from sparsify.errors import ModelError, SparsifyError, first_line
from sparsify.forward.calls import Call, Inputs, describe_batch, list_calls, resize_batch, tensors_by_path
from sparsify.forward.input_records import apply_record, draw_from_record, read_record
from sparsify.modelfile.formats import check_entries
from sparsify.pruning.fitting_inputs import find_inputs
from sparsify.reporting.report_file import read_report
from sparsify.runs import timed_targets
from sparsify.runs.planned_calls import draw_planned_inputs, read_planned_calls
from sparsify.runs.run_folder import read_recipe
from sparsify.runs.save_load import load_dense, load_run
from sparsify_schemas.target import Cpu, Target

_ONNX_RUNTIMES = ("onnxruntime", "openvino")


@dataclass(frozen=True, eq=False)
class Candidate:
    """A model that can be timed."""

    name: str
    model: nn.Module | torch.export.ExportedProgram | bytes
    """Bytes are an ONNX file."""
    inputs: Inputs | None
    """Example inputs; None where an ONNX file leaves more open than the batch size."""
    targets: Mapping[str, Target]
    """Where it is timed unless a target is named."""
    signature: tuple[Entry, ...]
    """The inputs that it takes, in its order."""
    batch: int | None = None
    """The only batch size that it takes; None for any."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its inputs; () where they are positional."""
        return tuple(entry.name for entry in self.signature if entry.name)


def read_candidates(paths: Sequence[Path]) -> tuple[Candidate, ...]:
    """Read the models to time: the dense and the cut model of a single run, else one model of each path.

    Raises SparsifyError, which names what cannot be read.
    """
    if len(paths) > 1:
        found = tuple(_read_candidate(path) for path in paths)
    elif paths[0].suffix in (".pt2", ".onnx"):
        raise SparsifyError(f"{paths[0]} is one model; name a second run, .pt2 or .onnx to time it against")
    else:
        cut = _read_run(paths[0])
        found = (replace(cut, name="dense", model=load_dense(paths[0])), replace(cut, name="cut"))
    for other in found[1:]:
        _check_same_inputs(found[0], other)
    return found


def time_pair(a: Candidate, b: Candidate, name: str, target: Target, seconds: float) -> BenchmarkResult:
    """Time two models in turn on a target, with the example inputs of the first that has some.

    Raises SparsifyError.
    """
    check_target(name, target)
    if target.table is not None:
        raise SparsifyError(
            f"target '{name}' is a machine described by {target.table}, so nothing can be timed on it here; "
            "choose another target with --on"
        )
    inputs = _choose_inputs(a, b)
    for candidate in (a, b):
        _check_batch(candidate, inputs, name, target)
    if inputs is None:
        raise SparsifyError(
            f"{a.name} and {b.name} leave the sizes of their inputs open; time them against a run or a .pt2"
        )
    with pin_cores(target), use_threads(target), torch.inference_mode(), torch.random.fork_rng(devices=[]):
        a, b = _translate_program(a, name, target), _translate_program(b, name, target)
        pattern = None
        if isinstance(a.model, nn.Module):
            pattern = make_shared_pattern(a.model, _arrange_inputs(a, inputs), target)
        batch = resize_batch(inputs, target.batch)
        # The first twice: the difference between its two copies is the noise of this machine.
        calls = [_prepare_call(c, _arrange_inputs(c, batch), name, target, pattern) for c in (a, a, b)]
        return compare_calls((a.name, b.name), calls, name, target, seconds)


def _choose_inputs(a: Candidate, b: Candidate) -> Inputs | None:
    """Inputs with a fixed batch size if a model has them, as it takes no others.

    Else those of the first that has any.
    """
    given = [candidate.inputs for candidate in (a, b) if candidate.inputs is not None]
    fixed = [inputs for inputs in given if describe_batch(inputs)]
    return next(iter([*fixed, *given]), None)


def _check_batch(candidate: Candidate, inputs: Inputs | None, name: str, target: Target) -> None:
    is_fixed = inputs is not None and describe_batch(inputs)
    if candidate.batch in (None, target.batch) or is_fixed:
        return
    raise SparsifyError(
        f"{candidate.name} only takes a batch of {candidate.batch}, but target '{name}' asks for "
        f"{target.batch}; export the model for any batch, "
        f"or name a target of batch {candidate.batch} with --on"
    )


def _read_candidate(path: Path) -> Candidate:
    if not path.exists():
        raise SparsifyError(f"{path}: no such file or folder")
    if not path.is_file():
        return _read_run(path)
    match path.suffix:
        case ".onnx":
            return _read_onnx(path)
        case ".pt2":
            return _read_program(path)
        case _:
            raise SparsifyError(
                f"{path} is neither a run folder nor a .pt2 or .onnx file, so it cannot be timed; "
                "'sparsify export' makes these files from a run"
            )


def _read_run(path: Path) -> Candidate:
    read_report(path)
    recipe = read_recipe(path)
    model = load_run(path)
    if recipe.inputs is None and recipe.calls is None and recipe.data is None:
        inputs = draw_planned_inputs(path)  # the run was saved from Python
    else:
        given = find_inputs(recipe, model, data_for_inputs(recipe))
        inputs = apply_record(read_planned_calls(path), given)
    targets = recipe.targets or timed_targets.default_targets()
    return Candidate(str(path), model, inputs, targets, _list_entries(inputs))


def _read_onnx(path: Path) -> Candidate:
    targets = {"onnxruntime": Cpu(kind="cpu", runtime="onnxruntime")}
    check_target("onnxruntime", targets["onnxruntime"])
    file = read_onnx(path)
    signature = list_entries(file)
    if not signature:
        raise ModelError(f"{path} takes no inputs, so there is nothing to time")
    unsupported = next((entry.name for entry in signature if entry.dtype is None), None)
    if unsupported is not None:
        raise ModelError(
            f"{path} takes '{unsupported}', which is not a tensor of a numpy data type, "
            "so no input can be drawn to time it with"
        )
    batch = next((entry.sizes[0] for entry in signature if entry.sizes), None)
    fixed = batch if isinstance(batch, int) else None
    return Candidate(str(path), file, _draw_inputs(signature), targets, signature, fixed)


def _draw_inputs(signature: Sequence[Entry]) -> Inputs | None:
    """Random inputs, of two examples where the batch size is open.

    None where more than the batch size is open.
    """
    recorded = []
    for entry in signature:
        has_open_batch = entry.sizes and isinstance(entry.sizes[0], str)
        sizes = (2, *entry.sizes[1:]) if has_open_batch else entry.sizes
        shape = tuple(size for size in sizes if isinstance(size, int))
        if len(shape) < len(sizes):
            return None
        recorded.append([entry.name, list(shape), entry.dtype or ""])
    return draw_from_record(read_record(recorded))


def _read_program(path: Path) -> Candidate:
    try:
        _refuse_code(path)
        with silence_torch():
            program = torch.export.load(path)
        args, kwargs = program.example_inputs or ((), {})
    except SparsifyError:
        raise
    except Exception as error:
        raise ModelError(f"{path} cannot be read as a torch.export program: {first_line(error)}") from None
    inputs: Inputs = dict(kwargs) if kwargs else tuple(args)
    values = inputs.values() if isinstance(inputs, Mapping) else inputs
    if not inputs or not all(isinstance(value, Tensor) for value in values):
        raise ModelError(f"{path} was exported without tensors as example inputs, so it cannot be called")
    targets = timed_targets.default_targets()
    return Candidate(str(path), program, inputs, targets, _list_entries(inputs), _fixed_batch(program))


def _list_entries(inputs: Inputs) -> tuple[Entry, ...]:
    """The tensors of the first call."""
    first = list_calls(inputs)[0]
    is_named = isinstance(first.inputs, Mapping)
    found = []
    for path, tensor in tensors_by_path(first).items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        found.append(Entry(path if is_named else "", tuple(tensor.shape), dtype))
    return tuple(found)


def _fixed_batch(program: torch.export.ExportedProgram) -> int | None:
    """The size of the first dimension of the first input as it was traced; None where any is possible."""
    user_inputs = program.graph_signature.user_inputs
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if node.op == "placeholder" and node.name in user_inputs and isinstance(value, Tensor) and value.ndim:
            return value.shape[0] if isinstance(value.shape[0], int) else None
    return None


_RAW_ENTRIES = ("data/weights/weight_", "data/constants/tensor_", "models/", ".data/")
"""Weights and constants as raw bytes, and graphs as JSON."""
_PLAIN_ENTRIES = ("archive_format", "archive_version", "byteorder", "version")


def _refuse_code(path: Path) -> None:
    """Refuse what torch.export.load would unpickle or load as native code. Raises ModelError.

    Allowed are raw weights and constants, and example inputs that are tensors.
    """
    advice = "which could execute code when it is read; export the model again"
    with zipfile.ZipFile(path) as archive:
        names = {name: name.partition("/")[2] for name in archive.namelist()}
        if not any(entry.startswith("models/") for entry in names.values()):
            raise ModelError(
                f"{path} holds no model, so it is not a torch.export program; torch.export.save makes one"
            )
        for name, entry in names.items():
            if entry.startswith("data/sample_inputs/"):
                torch.load(io.BytesIO(archive.read(name)), weights_only=True)
            elif entry.endswith("_config.json"):
                config = json.loads(archive.read(name))["config"]
                pickled = [key for key in config if config[key].get("use_pickle") is not False]
                if pickled:
                    raise ModelError(f"{path} holds '{pickled[0]}' as a pickle, {advice}")
            elif not entry.startswith(_RAW_ENTRIES) and entry not in _PLAIN_ENTRIES:
                raise ModelError(f"{path} holds {entry}, {advice} without it")
        check_entries(archive)


def _check_same_inputs(a: Candidate, b: Candidate) -> None:
    """Both must take the same inputs, whatever their batch size.

    A size that one leaves open fits every size.
    """
    by_name = {entry.name: entry for entry in b.signature}
    ordered = b.signature
    if set(a.names) == set(by_name):
        ordered = tuple(by_name[name] for name in a.names)
    if len(a.signature) == len(ordered) and all(map(_fits, a.signature, ordered)):
        return
    first = ", ".join(map(_describe_entry, a.signature))
    second = ", ".join(map(_describe_entry, ordered))
    raise SparsifyError(f"{b.name} takes {second}, and {a.name} takes {first}, so the two cannot be compared")


def _fits(a: Entry, b: Entry) -> bool:
    if a.dtype != b.dtype or len(a.sizes) != len(b.sizes):
        return False
    sizes = zip(a.sizes[1:], b.sizes[1:], strict=True)
    return all(x == y or isinstance(x, str) or isinstance(y, str) for x, y in sizes)


def _describe_entry(entry: Entry) -> str:
    """'3x32x32 of float32', without the batch size."""
    sizes = "x".join(str(size) or "?" for size in entry.sizes[1:])
    return f"{sizes or 'one number'} of {entry.dtype}"


def _arrange_inputs(candidate: Candidate, inputs: Inputs) -> Inputs:
    """The inputs as a model takes them: by name where the names are the same, else in order."""
    first = list_calls(inputs)[0]
    arguments = first.inputs.values() if isinstance(first.inputs, Mapping) else first.inputs
    is_calls = list_calls(inputs) is inputs
    if is_calls or not all(isinstance(value, Tensor) for value in arguments):
        # A module takes the calls as they are, a file takes the tensors in them.
        if isinstance(candidate.model, nn.Module):
            return inputs
        return (Call(inputs=tuple(tensors_by_path(first).values()), fixed=True),)
    if isinstance(inputs, Mapping) and set(inputs) == set(candidate.names):
        return {name: inputs[name] for name in candidate.names}
    values = tuple(inputs.values() if isinstance(inputs, Mapping) else inputs)
    if len(values) == len(candidate.names):
        return dict(zip(candidate.names, values, strict=True))
    return values


def _translate_program(candidate: Candidate, name: str, target: Target) -> Candidate:
    """Translate a torch.export program to ONNX, where the target's runtime needs that."""
    if not isinstance(candidate.model, torch.export.ExportedProgram) or target.runtime not in _ONNX_RUNTIMES:
        return candidate
    try:
        with silence_torch():
            program = torch.onnx.export(candidate.model, dynamo=True, verbose=False)
    except Exception as error:
        raise ModelError(
            f"{candidate.name} cannot run on target '{name}', because it cannot be exported to ONNX: "
            f"{short_reason(error)}; choose --on eager"
        ) from error
    assert program is not None  # it is None only without dynamo
    return replace(candidate, model=program.model_proto.SerializeToString())


def _prepare_call(
    candidate: Candidate, inputs: Inputs, name: str, target: Target, pattern: Pattern | None
) -> TimedCall:
    """The call to time, tried once. Raises SparsifyError."""
    try:
        with silence_torch():
            call = _make_call(candidate, inputs, name, target, pattern)
            call()
    except SparsifyError:
        raise
    except Exception as error:
        raise ModelError(
            f"{candidate.name} cannot run on target '{name}' with batch {target.batch}: {short_reason(error)}"
        ) from error
    return call


def _make_call(
    candidate: Candidate, inputs: Inputs, name: str, target: Target, pattern: Pattern | None
) -> TimedCall:
    match candidate.model:
        case bytes() as file:
            if not isinstance(target, Cpu) or target.runtime not in _ONNX_RUNTIMES:
                raise SparsifyError(
                    f"{candidate.name} is an ONNX file, but target '{name}' runs models in PyTorch; "
                    "choose --on onnxruntime or --on openvino"
                )
            return prepare_onnx(file, to_arrays(inputs), target)
        case nn.Module() as model:
            return prepare(model, inputs, target, pattern)
        case program:
            return prepare(program.module(), inputs, target)
