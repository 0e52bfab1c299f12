"""What `sparsify bench` can time: the models of a run, a torch.export program, an ONNX file. Nothing in a file is executed."""

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from sparsify.cost.benchmark_result import BenchmarkResult
from sparsify.cost.measure import check_target, resize_batch
from sparsify.cost.measure.compare import compare_calls, pin_cores
from sparsify.cost.measure.onnx_export import short_reason, silence_torch
from sparsify.cost.measure.onnx_inputs import Entry, list_entries, read_onnx
from sparsify.cost.measure.onnx_reuse import Pattern
from sparsify.cost.measure.runtimes import TimedCall as Run
from sparsify.cost.measure.runtimes import make_shared_pattern, prepare, prepare_onnx, to_arrays, use_threads
from sparsify.data import load_data
from sparsify.errors import ModelError, SparsifyError, first_line
from sparsify.forward.calls import Call, Inputs, describe_batch, list_calls, tensors_by_path
from sparsify.forward.input_records import apply_record, draw_from_record, read_record
from sparsify.modelfile.formats import check_entries
from sparsify.pruning.fitting_inputs import inputs_for
from sparsify.reporting import report_tables
from sparsify.runs import evaluate
from sparsify.runs.run_folder import read_recipe
from sparsify.runs.save_load import load_dense, load_run, planned_calls, planned_inputs
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
    taken: tuple[Entry, ...]
    """its inputs, in its order"""
    batch: int | None = None
    """the one batch that it takes; None for any"""

    @property
    def names(self) -> tuple[str, ...]:
        """Of its inputs; () where they are told apart by their order."""
        return tuple(entry.name for entry in self.taken if entry.name)


def subjects(paths: Sequence[Path]) -> tuple[Subject, ...]:
    """One run: its dense and its cut model. More artefacts: their models. Raises SparsifyError naming what cannot be read."""
    if len(paths) > 1:
        found = tuple(map(_read, paths))
    elif paths[0].suffix in (".pt2", ".onnx"):
        raise SparsifyError(f"{paths[0]} is one model; name a second run, .pt2 or .onnx to time it against")
    else:
        cut = _run(paths[0])
        found = (replace(cut, name="dense", made=load_dense(paths[0])), replace(cut, name="cut"))
    for other in found[1:]:
        _check_alike(found[0], other)
    return found


def versus(a: Subject, b: Subject, target: str, spec: Target, seconds: float) -> BenchmarkResult:
    """Time two on a target, on the inputs of the first that has some. Raises SparsifyError."""
    check_target(target, spec)
    if spec.table is not None:
        raise SparsifyError(
            f"target '{target}' is a machine described by {spec.table}, so nothing can be timed on it here; choose another with --on"
        )
    given = [s.inputs for s in (a, b) if s.inputs is not None]
    inputs = next(
        (own for own in given if describe_batch(own)), given[0] if given else None
    )  # what takes no other batch decides
    for subject in (a, b):
        if subject.batch not in (None, spec.batch) and not (inputs is not None and describe_batch(inputs)):
            raise SparsifyError(
                f"{subject.name} takes a batch of {subject.batch} and no other, and target '{target}' asks for {spec.batch}; "
                f"export the model for any batch, or name a target of batch {subject.batch} with --on"
            )
    if inputs is None:
        raise SparsifyError(
            f"{a.name} and {b.name} leave the sizes of their inputs open; time them against a run or a .pt2"
        )
    with pin_cores(spec), use_threads(spec), torch.inference_mode(), torch.random.fork_rng(devices=[]):
        a, b = (_translated(subject, target, spec) for subject in (a, b))
        like = make_shared_pattern(a.made, _given(a, inputs), spec) if isinstance(a.made, nn.Module) else None
        calls = [
            _ready(subject, _given(subject, resize_batch(inputs, spec.batch)), target, spec, like)
            for subject in (a, a, b)
        ]
        return compare_calls((a.name, b.name), calls, target, spec, seconds)


def _read(path: Path) -> Subject:
    if not path.exists():
        raise SparsifyError(f"{path}: no such file or folder")
    match path.suffix:
        case ".onnx" if path.is_file():
            return _onnx(path)
        case ".pt2" if path.is_file():
            return _program(path)
        case _ if path.is_file():
            raise SparsifyError(
                f"{path} is no run folder, no .pt2 and no .onnx file, so it cannot be timed; 'sparsify export' makes them of a run"
            )
        case _:
            return _run(path)


def _run(path: Path) -> Subject:
    report_tables.read(path)
    recipe = read_recipe(path)
    model, stated = load_run(path), recipe.inputs is not None or recipe.calls is not None
    if not stated and recipe.data is None:
        inputs = planned_inputs(path)  # saved from Python
    else:
        datasets = load_data(recipe.data, recipe.seed) if not stated and recipe.data is not None else None
        inputs = apply_record(planned_calls(path), inputs_for(recipe, model, datasets))
    return Subject(str(path), model, inputs, recipe.targets or evaluate.default_targets(), _taken(inputs))


def _onnx(path: Path) -> Subject:
    targets = {"onnxruntime": Cpu(kind="cpu", runtime="onnxruntime")}
    check_target("onnxruntime", targets["onnxruntime"])
    file = read_onnx(path)
    taken = list_entries(file)
    if not taken:
        raise ModelError(f"{path} takes no inputs, so there is nothing to time")
    odd = next((entry.name for entry in taken if entry.dtype is None), None)
    if odd is not None:
        raise ModelError(
            f"{path} takes '{odd}', which is no tensor of numbers that numpy has, so no input can be drawn to time it on"
        )
    batch = next((entry.sizes[0] for entry in taken if entry.sizes), None)
    return Subject(str(path), file, _drawn(taken), targets, taken, batch if isinstance(batch, int) else None)


def _drawn(taken: Sequence[Entry]) -> Inputs | None:
    """Random inputs, two where a batch is open; None where more than that is open."""
    recorded = []
    for entry in taken:
        sizes = (2, *entry.sizes[1:]) if entry.sizes and isinstance(entry.sizes[0], str) else entry.sizes
        shape = tuple(size for size in sizes if isinstance(size, int))
        if len(shape) < len(sizes):
            return None
        recorded.append([entry.name, list(shape), entry.dtype or ""])
    return draw_from_record(read_record(recorded))


def _program(path: Path) -> Subject:
    try:
        _check_plain(path)
        with silence_torch():
            program = torch.export.load(path)
        args, kwargs = program.example_inputs or ((), {})
    except SparsifyError:
        raise
    except Exception as error:
        raise ModelError(f"{path} cannot be read as a torch.export program: {first_line(error)}") from None
    inputs: Inputs = dict(kwargs) if kwargs else tuple(args)
    if not inputs or not all(
        isinstance(x, Tensor) for x in (inputs.values() if isinstance(inputs, Mapping) else inputs)
    ):
        raise ModelError(
            f"{path} was exported without example inputs that are tensors, so it cannot be called"
        )
    return Subject(str(path), program, inputs, evaluate.default_targets(), _taken(inputs), _batch(program))


def _taken(inputs: Inputs) -> tuple[Entry, ...]:
    """The tensors of the call, of the first where there are several."""
    first = list_calls(inputs)[0]
    named = isinstance(first.inputs, Mapping)
    return tuple(
        Entry(path if named else "", tuple(x.shape), str(x.dtype)[6:])
        for path, x in tensors_by_path(first).items()
    )


def _batch(program: torch.export.ExportedProgram) -> int | None:
    """The length that the first dimension of the first input has as it was followed; None where any will do."""
    own = program.graph_signature.user_inputs
    shapes = (
        node.meta["val"].shape
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in own and isinstance(node.meta.get("val"), Tensor)
    )
    size = next((shape[0] for shape in shapes if len(shape)), None)
    return size if isinstance(size, int) else None


def _check_plain(path: Path) -> None:
    """Refuse what torch.export.load would unpickle, or load as native code: weights and constants are raw, inputs are tensors."""
    with zipfile.ZipFile(path) as archive:
        if not any(name.partition("/")[2].startswith("models/") for name in archive.namelist()):
            raise ModelError(
                f"{path} is no torch.export program, as it holds no model; torch.export.save makes one"
            )
        for name in archive.namelist():
            part = name.partition("/")[2]
            if part.startswith("data/sample_inputs/"):
                torch.load(io.BytesIO(archive.read(name)), weights_only=True)
            elif part.endswith("_config.json"):
                pickled = [
                    key
                    for key, entry in json.loads(archive.read(name))["config"].items()
                    if entry.get("use_pickle") is not False
                ]
                if pickled:
                    raise ModelError(
                        f"{path} holds '{pickled[0]}' as a pickle, which could execute code when it is read; export the model anew"
                    )
            elif (
                not part.startswith(("data/weights/weight_", "data/constants/tensor_", "models/", ".data/"))
                and part not in _PLAIN
            ):
                raise ModelError(
                    f"{path} holds {part}, which could execute code when it is read; export the model anew, without it"
                )
        check_entries(archive)


_PLAIN = ("archive_format", "archive_version", "byteorder", "version")


def _check_alike(a: Subject, b: Subject) -> None:
    """Both must take the same inputs, whatever their batch; what one leaves open fits everything."""
    by_name = {entry.name: entry for entry in b.taken}
    ordered = tuple(by_name[name] for name in a.names) if set(a.names) == set(by_name) else b.taken
    if len(a.taken) != len(ordered) or not all(map(_alike, a.taken, ordered)):
        first, second = (", ".join(map(_shown, taken)) for taken in (a.taken, ordered))
        raise SparsifyError(
            f"{b.name} takes {second}, and {a.name} takes {first}, so the two cannot be compared"
        )


def _alike(a: Entry, b: Entry) -> bool:
    sizes = zip(a.sizes[1:], b.sizes[1:], strict=False)
    return (
        a.dtype == b.dtype
        and len(a.sizes) == len(b.sizes)
        and all(x == y or isinstance(x, str) or isinstance(y, str) for x, y in sizes)
    )


def _shown(entry: Entry) -> str:
    """'3x32x32 of float32', without the batch."""
    return f"{'x'.join(str(size) or '?' for size in entry.sizes[1:]) or 'one number'} of {entry.dtype}"


def _given(subject: Subject, inputs: Inputs) -> Inputs:
    """The inputs as the subject takes them: by the same names where it has these, else in order."""
    first = list_calls(inputs)[0]
    arguments = first.inputs.values() if isinstance(first.inputs, Mapping) else first.inputs
    if list_calls(inputs) is inputs or not all(isinstance(value, Tensor) for value in arguments):
        # A model takes the calls as they are, a file the tensors that they hold.
        return (
            inputs
            if isinstance(subject.made, nn.Module)
            else (Call(inputs=tuple(tensors_by_path(first).values()), fixed=True),)
        )
    if isinstance(inputs, Mapping) and set(inputs) == set(subject.names):
        return {name: inputs[name] for name in subject.names}
    values = tuple(inputs.values() if isinstance(inputs, Mapping) else inputs)
    return dict(zip(subject.names, values, strict=True)) if len(values) == len(subject.names) else values


def _translated(subject: Subject, target: str, spec: Target) -> Subject:
    """A torch.export program as ONNX, where the target runs that."""
    if not isinstance(subject.made, torch.export.ExportedProgram) or spec.runtime not in _ONNX_RUNTIMES:
        return subject
    try:
        with silence_torch():
            made = torch.onnx.export(subject.made, dynamo=True, verbose=False)
    except Exception as error:
        raise ModelError(
            f"{subject.name} cannot be run on target '{target}', as ONNX cannot express it: {short_reason(error)}; choose --on eager"
        ) from error
    assert made is not None  # it is None only without dynamo
    return replace(subject, made=made.model_proto.SerializeToString())


def _ready(subject: Subject, inputs: Inputs, target: str, spec: Target, like: Pattern | None) -> Run:
    try:
        with silence_torch():
            call = _call(subject, inputs, target, spec, like)
            call()
    except SparsifyError:
        raise
    except Exception as error:
        raise ModelError(
            f"{subject.name} cannot be run on target '{target}' with batch {spec.batch}: {short_reason(error)}"
        ) from error
    return call


def _call(subject: Subject, inputs: Inputs, target: str, spec: Target, like: Pattern | None) -> Run:
    match subject.made:
        case bytes() as file:
            if not isinstance(spec, Cpu) or spec.runtime not in _ONNX_RUNTIMES:
                raise SparsifyError(
                    f"{subject.name} is an ONNX file, which PyTorch does not run, as target '{target}' asks; choose --on onnxruntime or --on openvino"
                )
            return prepare_onnx(file, to_arrays(inputs), spec)
        case nn.Module() as model:
            return prepare(model, inputs, spec, like)
        case program:
            return prepare(program.module(), inputs, spec)
