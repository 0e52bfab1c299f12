"""What `sparsify bench` can time: the models of a run, a torch.export program, an ONNX file. Nothing in a file is executed."""

import io
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from sparsify import assess
from sparsify import report as reports
from sparsify.artefact import load_dense, load_run, planned_inputs
from sparsify.contest import Contest
from sparsify.data import example_inputs, inputs_like, load_data
from sparsify.errors import ModelError, SparsifyError, first_line
from sparsify.folder import read_recipe
from sparsify.graph import Inputs
from sparsify.measure import check_target, with_batch
from sparsify.measure.contesting import contested, pinned
from sparsify.measure.portable import quiet, reason
from sparsify.measure.refilling import Pattern
from sparsify.measure.running import Call, arrays, pattern_of, prepared, prepared_onnx, threads
from sparsify_schemas.target import Cpu, Target

_ONNX_RUNTIMES = ("onnxruntime", "openvino")


@dataclass(frozen=True, eq=False)
class Subject:
    """A model as it can be timed."""

    name: str
    made: nn.Module | torch.export.ExportedProgram | bytes
    """bytes are an ONNX file"""
    inputs: Inputs | None
    """examples; None where an ONNX file leaves more open than the batch"""
    targets: Mapping[str, Target]
    """on which it is timed when nobody says otherwise"""


def subjects(paths: Sequence[Path]) -> tuple[Subject, ...]:
    """One run: its dense and its cut model. More artefacts: their models. Raises SparsifyError naming what cannot be read."""
    if len(paths) > 1:
        found = tuple(map(_read, paths))
    elif paths[0].suffix in (".pt2", ".onnx"):
        raise SparsifyError(f"{paths[0]} is one model; name a second run, .pt2 or .onnx to time it against")
    else:
        cut = _run(paths[0])
        found = (Subject("dense", load_dense(paths[0]), cut.inputs, cut.targets), Subject("cut", cut.made, cut.inputs, cut.targets))
    for other in found[1:]:
        _check_alike(found[0], other)
    return found


def versus(a: Subject, b: Subject, target: str, spec: Target, seconds: float) -> Contest:
    """Time two on a target, on the inputs of the first that has some. Raises SparsifyError."""
    check_target(target, spec)
    if spec.table is not None:
        raise SparsifyError(f"target '{target}' is a machine described by {spec.table}, so nothing can be timed on it here; choose another with --on")
    inputs = next((s.inputs for s in (a, b) if s.inputs is not None), None)
    if inputs is None:
        raise SparsifyError(f"{a.name} and {b.name} leave the sizes of their inputs open; time them against a run or a .pt2")
    with pinned(spec), threads(spec), torch.inference_mode(), torch.random.fork_rng(devices=[]):
        a, b = (_translated(subject, target, spec) for subject in (a, b))
        like = pattern_of(a.made, inputs, spec) if isinstance(a.made, nn.Module) else None
        calls = [_ready(subject, with_batch(inputs, spec.batch), target, spec, like) for subject in (a, a, b)]
        return contested((a.name, b.name), calls, target, spec, seconds)


def _read(path: Path) -> Subject:
    if not path.exists():
        raise SparsifyError(f"{path}: no such file or folder")
    match path.suffix:
        case ".onnx" if path.is_file():
            return _onnx(path)
        case ".pt2" if path.is_file():
            return _program(path)
        case _ if path.is_file():
            raise SparsifyError(f"{path} is no run folder, no .pt2 and no .onnx file, so it cannot be timed; 'sparsify export' makes them of a run")
        case _:
            return _run(path)


def _run(path: Path) -> Subject:
    reports.read(path)
    recipe = read_recipe(path)
    if recipe.inputs is None and recipe.data is None:
        inputs = planned_inputs(path)  # saved from Python
    else:
        datasets = load_data(recipe.data, recipe.seed) if recipe.inputs is None and recipe.data is not None else None
        inputs = example_inputs(recipe, datasets)
    return Subject(str(path), load_run(path), inputs, recipe.targets or assess.default_targets())


def _onnx(path: Path) -> Subject:
    targets = {"onnxruntime": Cpu(kind="cpu", runtime="onnxruntime")}
    check_target("onnxruntime", targets["onnxruntime"])
    import onnx

    file = path.read_bytes()
    try:
        graph = onnx.ModelProto.FromString(file).graph
        stored = {entry.name for entry in graph.initializer}
        taken = [(entry.name, entry.type.tensor_type) for entry in graph.input if entry.name not in stored]
        onnx.checker.check_model(file)
        kinds = [str(torch.from_numpy(onnx.helper.tensor_dtype_to_np_dtype(t.elem_type).type(0).reshape(1)).dtype)[6:] for _, t in taken]
    except Exception as error:
        raise ModelError(f"{path} cannot be read as an ONNX file: {first_line(error)}") from None
    shapes = [tuple(2 if at == 0 and not d.dim_value else d.dim_value for at, d in enumerate(t.shape.dim)) for _, t in taken]
    known = bool(shapes) and all(size > 0 for shape in shapes for size in shape)
    inputs = inputs_like([(None, shape, kind) for shape, kind in zip(shapes, kinds, strict=True)]) if known else None
    return Subject(str(path), file, inputs, targets)


def _program(path: Path) -> Subject:
    try:
        _check_plain(path)
        with quiet():
            program = torch.export.load(path)
        args, kwargs = program.example_inputs or ((), {})
    except SparsifyError:
        raise
    except Exception as error:
        raise ModelError(f"{path} cannot be read as a torch.export program: {first_line(error)}") from None
    inputs: Inputs = dict(kwargs) if kwargs else tuple(args)
    if not inputs or not all(isinstance(x, Tensor) for x in (inputs.values() if isinstance(inputs, Mapping) else inputs)):
        raise ModelError(f"{path} was exported without example inputs that are tensors, so it cannot be called")
    return Subject(str(path), program, inputs, assess.default_targets())


def _check_plain(path: Path) -> None:
    """Refuse what torch.export.load would unpickle, or load as native code: weights and constants are raw, inputs are tensors."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            part = name.partition("/")[2]
            if part.startswith("data/sample_inputs/"):
                torch.load(io.BytesIO(archive.read(name)), weights_only=True)
            elif part.endswith("_config.json"):
                pickled = [key for key, entry in json.loads(archive.read(name))["config"].items() if entry.get("use_pickle") is not False]
                if pickled:
                    raise ModelError(f"{path} holds '{pickled[0]}' as a pickle, which could execute code when it is read; export the model anew")
            elif not part.startswith(("data/weights/weight_", "data/constants/tensor_", "models/", ".data/")) and part not in _PLAIN:
                raise ModelError(f"{path} holds {part}, which could execute code when it is read; export the model anew, without it")


_PLAIN = ("archive_format", "archive_version", "byteorder", "version")


def _check_alike(a: Subject, b: Subject) -> None:
    """Both must take the same inputs, whatever their batch."""
    if a.inputs is None or b.inputs is None:
        return
    first, second = (", ".join(_shapes(s.inputs)) for s in (a, b) if s.inputs is not None)
    if first != second:
        raise SparsifyError(f"{b.name} takes {second}, and {a.name} takes {first}, so the two cannot be compared")


def _shapes(inputs: Inputs) -> Iterator[str]:
    for x in inputs.values() if isinstance(inputs, Mapping) else inputs:
        yield f"{'x'.join(map(str, x.shape[1:])) or 'one number'} of {str(x.dtype)[6:]}"


def _translated(subject: Subject, target: str, spec: Target) -> Subject:
    """A torch.export program as ONNX, where the target runs that."""
    if not isinstance(subject.made, torch.export.ExportedProgram) or spec.runtime not in _ONNX_RUNTIMES:
        return subject
    try:
        with quiet():
            made = torch.onnx.export(subject.made, dynamo=True, verbose=False)
    except Exception as error:
        raise ModelError(f"{subject.name} cannot be run on target '{target}', as ONNX cannot express it: {reason(error)}; choose --on eager") from error
    assert made is not None  # it is None only without dynamo
    return replace(subject, made=made.model_proto.SerializeToString())


def _ready(subject: Subject, inputs: Inputs, target: str, spec: Target, like: Pattern | None) -> Call:
    try:
        call = _call(subject, inputs, target, spec, like)
        call()
    except SparsifyError:
        raise
    except Exception as error:
        raise ModelError(f"{subject.name} cannot be run on target '{target}' with batch {spec.batch}: {first_line(error)}") from error
    return call


def _call(subject: Subject, inputs: Inputs, target: str, spec: Target, like: Pattern | None) -> Call:
    match subject.made:
        case bytes() as file:
            if not isinstance(spec, Cpu) or spec.runtime not in _ONNX_RUNTIMES:
                raise SparsifyError(f"{subject.name} is an ONNX file, which PyTorch does not run, as target '{target}' asks; choose --on onnxruntime or --on openvino")
            return prepared_onnx(file, arrays(inputs), spec)
        case nn.Module() as model:
            return prepared(model, inputs, spec, like)
        case program:
            return prepared(program.module(), inputs, spec)
