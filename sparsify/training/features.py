"""What layers of a model and of its teacher return, side by side."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.data import Examples
from sparsify.errors import TrainingError
from sparsify.forward.copies import copy_model
from sparsify.forward.fused_attention import without_fused_attention
from sparsify.objective.objective import Objective, predict
from sparsify.pruning.repair.kept_outputs import find_kept_features
from sparsify.training.optimizers import list_classes, suggest_layers
from sparsify_schemas.cuts import Cuts
from sparsify_schemas.selector import selects

Recorded = dict[str, list[Tensor]]
"""layer -> what it returned, call by call"""


class FeaturePairs:
    """What some layers of a model and of its teacher return for the same batch, for
    `sparsify.distillation_losses`.

    Args:
        model: That learns.
        teacher: The dense model, or another whose layers have the same names.
        layers: Globs on names of modules, `re:` and a regular expression, or names of classes.
        cuts: The log of the cuts that made the model from the teacher, `result.cuts`, or several in order:
            which outputs of the teacher are compared. Left out, both must return the same shapes.

    Raises:
        TrainingError: No module of the model matches, or one of them is not in the teacher.

    Source: Romero et al., arXiv:1412.6550.

    Examples:
        >>> result = sparsify.cut(sparsify.make_plan(recipe, model, (x,)), model)
        >>> features = sparsify.FeaturePairs(result.model, result.dense, "0", result.cuts)
        >>> with features.record():
        ...     outputs = result.model(x)
        ...     with torch.no_grad():
        ...         teacher = result.dense(x)
        >>> [own.shape == taught.shape for own, taught in features.pairs()]
        [True]
    """

    def __init__(
        self,
        model: nn.Module,
        teacher: nn.Module,
        layers: str | Sequence[str],
        cuts: Cuts | Sequence[Cuts] = (),
    ) -> None:
        patterns = (layers,) if isinstance(layers, str) else tuple(layers)
        self._model, self._teacher = model, teacher
        self._names = find_modules(model, patterns)
        if not self._names:
            raise TrainingError(f"features {_quote(patterns)} match no module of the model")
        known = dict(teacher.named_modules())
        missing = [name for name in self._names if name not in known]
        if missing:
            raise TrainingError(
                f"features: {_quote(missing[:3])} is not in the teacher; name layers that both have"
            )
        rounds = (cuts,) if isinstance(cuts, Cuts) else tuple(cuts)
        self._kept = find_kept_features(teacher, rounds) if rounds else {}
        self._own: Recorded = {}
        self._taught: Recorded = {}

    @contextmanager
    def record(self) -> Iterator[None]:
        """Inside, what the layers return is kept; what was kept before is dropped."""
        with self.record_model(), self.record_teacher():
            yield

    @contextmanager
    def record_model(self) -> Iterator[None]:
        """The same for the model alone."""
        self._own = {}
        with record_outputs(self._model, self._names, self._own):
            yield

    @contextmanager
    def record_teacher(self) -> Iterator[None]:
        """The same for the teacher alone."""
        self._taught = {}
        with record_outputs(self._teacher, self._names, self._taught):
            yield

    def forget(self) -> None:
        """Drop what was kept, and the memory that it takes."""
        self._own, self._taught = {}, {}

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """(what a layer returned, what it returned in the teacher, of the units that stayed) for each call of
        each layer.

        Layers that return no tensor of real numbers are left out; of a tuple or mapping the first value
        counts. Raises TrainingError where shapes differ for another reason than the cuts.
        """
        return [(own, taught) for _, own, taught in self.named_pairs()]

    def named_pairs(self) -> list[tuple[str, Tensor, Tensor]]:
        """`pairs` with the name of the layer before each."""
        found = []
        for name in self._names:
            own, taught = self._own.get(name, []), self._taught.get(name, [])
            if len(own) != len(taught):
                raise TrainingError(
                    f"features: '{name}' is called {len(own)} times in the model and {len(taught)} times in "
                    "the teacher; name another layer"
                )
            found += [(name, *self._match(name, *pair)) for pair in zip(own, taught, strict=True)]
        if not found:
            raise TrainingError(
                f"features: {_quote(self._names[:3])} returns no tensor of real numbers; name another layer"
            )
        return found

    def _match(self, name: str, own: Tensor, taught: Tensor) -> tuple[Tensor, Tensor]:
        """Both in one shape: the teacher's without the units that were cut."""
        if own.shape == taught.shape:
            return own, taught
        kept = self._kept.get(name)
        found = None if kept is None else _keep_units(taught, kept, own.shape)
        if found is not None:
            return own, found
        why = (
            "the log of the cuts does not say which of these stayed; name a layer with weights, such as the "
            "convolution before it"
            if self._kept
            else "nothing says which of these belong together; name layers of equal widths"
        )
        raise TrainingError(
            f"features: '{name}' returns a tensor of shape {tuple(own.shape)} and in the teacher one of "
            f"{tuple(taught.shape)}, and {why}"
        )


def _keep_units(taught: Tensor, kept: Tensor, wanted: torch.Size) -> Tensor | None:
    """The units that stayed, along the one dimension that differs; None where that does not give the shape
    wanted."""
    if taught.dim() != len(wanted):
        return None
    differ = [dim for dim, size in enumerate(wanted) if taught.shape[dim] != size]
    if len(differ) != 1 or len(kept) != wanted[differ[0]] or int(kept.max()) >= taught.shape[differ[0]]:
        return None
    return taught.index_select(differ[0], kept.to(taught.device))


def find_modules(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Names of the modules inside a model that any pattern selects, in order, each module once."""
    return [
        name
        for name, module in model.named_modules()
        if name and selects(patterns, name, list_classes(module))
    ]


def why_not_compared(
    model: nn.Module, patterns: Sequence[str], examples: Examples, objective: Objective
) -> str | None:
    """What is wrong where a pattern selects no module whose output can be compared; tried on a copy."""
    for pattern in patterns:
        if not find_modules(model, [pattern]):
            inner = [(name, module) for name, module in model.named_modules() if name]
            classes = sorted({type(module).__name__ for _, module in inner})
            hint = suggest_layers(pattern, [name for name, _ in inner], classes)
            return f"'{pattern}' matches no module of the model; {hint}"
    recorded: Recorded = {}
    copy = copy_model(model).cpu().eval()
    inputs, targets = examples[:2].batch()
    with (
        torch.random.fork_rng(devices=[]),
        torch.no_grad(),
        record_outputs(copy, find_modules(model, patterns), recorded),
    ):
        predict(objective, copy, inputs, targets)
    for pattern in patterns:
        if not any(name in recorded for name in find_modules(model, [pattern])):
            return (
                f"'{pattern}' matches no module that is called and returns a tensor of real numbers; name "
                "another"
            )
    return None


@contextmanager
def record_outputs(model: nn.Module, names: Sequence[str], recorded: Recorded) -> Iterator[None]:
    """Inside, add what the modules return to `recorded`, as copies that later layers cannot change in place.

    A pass that computes activations again comes in the backward pass, after this has ended.
    """
    with ExitStack() as handles, without_fused_attention():
        for name in names:
            handle = model.get_submodule(name).register_forward_hook(_make_hook(name, recorded))
            handles.callback(handle.remove)
        yield


def _make_hook(name: str, recorded: Recorded) -> Callable[..., None]:
    def record(_module: nn.Module, _given: Any, returned: Any) -> None:
        found = _first_tensor(returned)
        if found is not None and found.is_floating_point():
            recorded.setdefault(name, []).append(found.clone())

    return record


def _first_tensor(returned: Any) -> Tensor | None:
    if isinstance(returned, Tensor):
        return returned
    if isinstance(returned, Mapping):
        return _first_tensor(next(iter(returned.values()), None))
    return _first_tensor(returned[0]) if isinstance(returned, tuple | list) and returned else None


def _quote(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
