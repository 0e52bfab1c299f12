"""Find integers of modules that state a width which a cut has changed, and set them or list them in a
note.

`num_features`, `out_channels`, `config.intermediate_size` stand beside the tensors that they describe. A
forward call may read none of them, but later code does: re-parametrising a block, building another head,
saving a configuration. The dense and the cut model run once with the same inputs; the length of each
dimension before and after tells what became of a width. A number is set if its name says that it is a
width, if all dimensions that its name can mean agree on one new length, and if the cut model computes the
same with it. The other numbers are listed.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from sparsify.forward.calls import Inputs
from sparsify.forward.scratch import borrow_model
from sparsify.graph.expert_numbers import find_old_names, find_shortened, rename
from sparsify.graph.layer_types import attributes
from sparsify.graph.name_kinds import name_kind
from sparsify.graph.names import all_names, walk_modules
from sparsify.graph.surgery import module_integers, own_settings, transformers_config
from sparsify.graph.surgery.compare_lengths import Lengths, ModuleLengths, compare_lengths
from sparsify.graph.surgery.explained_numbers import is_explained
from sparsify.graph.surgery.harmless_numbers import StaleNumber, run_in_both_modes, split_by_effect
from sparsify.graph.surgery.module_integers import HeldNumber
from sparsify.graph.surgery.width_names import (
    Meaning,
    is_expert_count,
    is_head_count,
    names_stream,
    read_meaning,
)
from sparsify.nn.bypass import Bypassed, Silenced
from sparsify_schemas.cuts import Cuts, Narrow, Select, SetAttribute, Shorten

LEAST_WIDTH = 8
"""least value of a listed number with an uninformative name; smaller ones match some length by chance"""


@dataclass(frozen=True)
class _WidthChanges:
    """What a cut did to the lengths of dimensions and to numbers."""

    lengths: Mapping[str, ModuleLengths]
    """by module"""
    numbers: Mapping[str, Sequence[tuple[str, int, int]]]
    """attribute name -> (its module, value before, value after)"""
    changed: frozenset[int]
    """every old length and number that has changed"""


def follow_widths(
    dense: nn.Module,
    thin: nn.Module,
    cuts: Cuts,
    inputs: Inputs,
    stated: Iterable[tuple[str, str, int, int]] = (),
) -> Cuts:
    """Set the stale integers of a cut model in place.

    dense: the model before the cut. inputs: of one forward call; the models' tensors do not change. stated:
    (name of a number, module, value before, value after) of numbers that only configurations hold.
    Returns the log with what was set, and with notes on what was not.
    """
    if not any(isinstance(op, Narrow) for op in cuts.operations):
        return cuts
    shortened = find_shortened(cuts)
    lengths = compare_lengths(dense, thin, inputs, shortened)
    stated = list(stated)
    before: Sequence[list[Tensor] | str] | None = None
    if own_settings.has_copies(cuts):
        before = run_in_both_modes(borrow_model(thin), inputs)
        cuts = own_settings.share_again(dense, thin, cuts, inputs, before)
    notes: list[StaleNumber] = []
    read: list[StaleNumber] = []
    # Configurations last: the numbers of modules say what became of their fields. And once more where one of
    # a module was set: those of the modules around it are judged by it.
    passes = [False, True]
    while passes:
        nested = passes.pop(0)
        numbers = [*own_settings.list_numbers(dense, thin, cuts), *stated]
        known = _collect_changes(dense, thin, lengths, shortened, numbers)
        found = list(_find_stale(dense, thin, known, cuts, nested))
        certain = [stale for stale in found if stale.new is not None]
        if certain and before is None:
            before = run_in_both_modes(borrow_model(thin), inputs)
        good, differing = split_by_effect(thin, certain, inputs, before or ())
        sets = [
            SetAttribute(module=stale.module, attribute=stale.path, value=stale.new)
            for stale in good
            if stale.new is not None
        ]
        for op in sets:
            module_integers.write_number(thin.get_submodule(op.module), op.attribute, op.value)
        sets += own_settings.write_alike(dense, thin, cuts, sets)
        cuts = cuts.model_copy(update={"operations": (*cuts.operations, *sets)})
        uncertain = [stale for stale in found if stale.new is None]
        if sets and uncertain and not nested:
            passes.insert(0, nested)
            continue
        notes += uncertain
        read += differing
    cuts, problems = _follow_configuration(thin, cuts)
    told = (
        *_describe_stale(notes, ""),
        *_describe_stale(read, ", and the model computes with it"),
        *problems,
    )
    return cuts.model_copy(update={"notes": (*cuts.notes, *told)})


def _list_by_old_name(
    dense: nn.Module, thin: nn.Module, shortened: Sequence[Shorten]
) -> dict[str, nn.Module]:
    """The modules of the cut model, by their names in the dense one."""
    old = find_old_names([name for name, _ in walk_modules(dense)], shortened)
    return {old[name]: module for name, module in walk_modules(thin) if name in old}


def _collect_changes(
    dense: nn.Module,
    thin: nn.Module,
    lengths: Mapping[str, ModuleLengths],
    shortened: Sequence[Shorten],
    stated: Iterable[tuple[str, str, int, int]],
) -> _WidthChanges:
    there = _list_by_old_name(dense, thin, shortened)
    numbers: dict[str, list[tuple[str, int, int]]] = defaultdict(list)
    for name, module in walk_modules(dense):
        after = vars(there[name]) if name in there else {}
        for key, old in vars(module).items():
            new = after.get(key)
            if type(old) is int and type(new) is int:
                numbers[key].append((name, old, new))
    for key, name, old, new in (*_count_heads(dense, thin), *stated):
        numbers[key].append((name, old, new))
    of_lengths = {old for around in lengths.values() for old, new in around.every if old != new}
    of_numbers = {old for entries in numbers.values() for _, old, new in entries if old != new}
    return _WidthChanges(lengths, numbers, frozenset(of_lengths | of_numbers))


def _count_heads(dense: nn.Module, thin: nn.Module) -> Iterator[tuple[str, str, int, int]]:
    """(name of a number, module, value before, value after) of attentions that do not count their heads.

    The count is the rows of their projections divided by the size of a head.
    """
    there = all_names(thin)
    for name, module in walk_modules(dense):
        size = vars(module).get("head_dim")
        if type(size) is not int or size < 1:
            continue
        for projection, key in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
            weight = f"{name}.{projection}.weight" if name else f"{projection}.weight"
            child = module._modules.get(projection)
            if isinstance(child, nn.Linear) and weight in there:
                rows, left = child.weight.shape[0], there[weight].shape[0]
                if rows % size == left % size == 0:
                    yield key, name, rows // size, left // size


def _find_stale(
    dense: nn.Module, thin: nn.Module, known: _WidthChanges, cuts: Cuts, nested: bool
) -> Iterator[StaleNumber]:
    """The stale numbers of modules, or of the containers that modules hold."""
    shortened = find_shortened(cuts)
    there = _list_by_old_name(dense, thin, shortened)
    done = {(op.module, op.attribute) for op in cuts.operations if isinstance(op, SetAttribute)}
    seen: set[int] = set()
    for name, module in walk_modules(dense):
        twin = there.get(name)
        if twin is None or isinstance(twin, Bypassed | Silenced):
            continue
        implied = attributes(module)  # a layer's own widths are those of its tensors already
        for held in module_integers.find_numbers(module, seen):
            if ("." in held.path) is not nested:
                continue
            if (rename(name, shortened), held.path) in done or held.path in implied:
                continue
            if module_integers.read_number(twin, held.path) != held.value:
                continue
            stale = _judge_number(name, held, known)
            if stale is not None and _serves_selection(name, held, cuts):
                stale = _leave_out_all_heads(stale) if nested else None
            if stale is None:
                continue
            is_open = nested and not name and stale.new is None
            if is_open and transformers_config.is_unchanged(dense, thin, held.path):
                continue
            if nested and stale.new is not None:
                shared = module_integers.shares_container(module, twin, held.path)
                if shared or not is_explained(cuts, held.name, held.value, stale.new):
                    stale = replace(
                        stale, new=None
                    )  # it would change the dense model too, or replay refuse it
            yield replace(stale, module=rename(name, shortened) or name)


def _serves_selection(module: str, held: HeldNumber, cuts: Cuts) -> bool:
    """Whether it counts heads for all of which something is made (slopes), of which the attentions inside the
    module select those of their own heads."""
    start = f"{module}." if module else ""
    selections = (op for op in cuts.operations if isinstance(op, Select))
    return is_head_count(held.name) and any(
        op.size == held.value and op.module.startswith(start) for op in selections
    )


def _leave_out_all_heads(stale: StaleNumber) -> StaleNumber:
    """The number of all heads is no number of a layer."""
    return replace(stale, lengths=tuple(length for length in stale.lengths if length != stale.value))


def _judge_number(module: str, held: HeldNumber, known: _WidthChanges) -> StaleNumber | None:
    """What a number should be; None if it is right or no width."""
    kind = read_meaning(held.name)
    values = held.value if isinstance(held.value, tuple) else (held.value,)
    if kind is Meaning.NEVER or (kind is Meaning.UNKNOWN and "." in held.path):
        return None
    if held.name in ("dim", "dims") and max(values) < LEAST_WIDTH:
        return None  # the number of a dimension rather than its length
    found = []
    for value in values:
        changed = value in known.changed
        found.append(_new_lengths(module, held, kind, value, known) if changed else set[int]())
    stale = [new for value, new in zip(values, found, strict=True) if new - {value}]
    if not stale:
        return None
    lengths = tuple(sorted(set[int]().union(*stale)))
    if kind is Meaning.UNKNOWN or any(len(new) > 1 for new in found):
        return StaleNumber(module, held.path, held.value, None, lengths)
    sure = tuple(min(new, default=value) for value, new in zip(values, found, strict=True))
    return StaleNumber(
        module, held.path, held.value, sure if isinstance(held.value, tuple) else sure[0], lengths
    )


def _new_lengths(module: str, held: HeldNumber, kind: Meaning, value: int, known: _WidthChanges) -> set[int]:
    """New lengths of the nearest dimensions of length `value` that a number can mean; empty if there are
    none."""
    own = known.lengths[module]
    around = _new_values(own.inputs | own.outputs, value)
    alike = _same_name_values(module, held, value, known)
    source = held.beside.get("module")
    if kind is Meaning.AS_BELOW:
        return alike
    if "." in held.path and isinstance(source, str) and source in known.lengths:
        # an entry that names the module which it describes
        return _new_values(known.lengths[source].outputs, value)
    if "." in held.path:
        between = _new_values(_lengths_between_children(module, known), value)
        if alike and kind is Meaning.WIDTH:
            # The stream keeps its width, whatever the attentions call their own.
            if names_stream(held.name) and between == {value}:
                return between
            alike |= between & {value}
        return alike or between or _new_values(_lengths_below(module, known, tensors_only=True), value)
    inside = _new_values(_lengths_below(module, known, children_only=True), value)
    match kind:
        case Meaning.INPUT:
            nearest = _new_values(own.inputs, value) or alike or inside
        case Meaning.OUTPUT:
            nearest = _new_values(own.outputs, value) or alike or inside
        case Meaning.INNER:
            nearest = (inside - around) or inside
        case Meaning.UNKNOWN:
            both = around | inside
            return set() if value in both or value < LEAST_WIDTH else both
        case _:
            nearest = around or inside
    return nearest or _new_values(_lengths_below(module, known), value)


def _lengths_below(
    module: str, known: _WidthChanges, *, children_only: bool = False, tensors_only: bool = False
) -> Lengths:
    """Old and new lengths of a module's own tensors and of those of the modules inside it."""
    start = f"{module}." if module else ""
    found = set(known.lengths[module].held)
    for name, around in known.lengths.items():
        if name != module and name.startswith(start) and not (children_only and "." in name[len(start) :]):
            found |= around.held if tensors_only else around.every
    return found


def _new_values(lengths: Lengths, value: int) -> set[int]:
    return {new for old, new in lengths if old == value}


def _lengths_between_children(module: str, known: _WidthChanges) -> Lengths:
    """Old and new lengths of the inputs and outputs of a module's direct children."""
    start = f"{module}." if module else ""
    found: Lengths = set()
    for name, around in known.lengths.items():
        if name != module and name.startswith(start) and "." not in name[len(start) :]:
            found |= around.inputs | around.outputs
    return found


def _same_name_values(module: str, held: HeldNumber, value: int, known: _WidthChanges) -> set[int]:
    """New values of equal numbers of that name in the modules inside a module. Heads and experts have several
    names."""
    names = [held.name]
    if is_head_count(held.name) and "key" not in held.name:
        names = [name for name in known.numbers if is_head_count(name) and "key" not in name]
    if is_expert_count(held.name):
        names = [name for name in known.numbers if is_expert_count(name)]
    nested = "." in held.path
    start = f"{module}." if module else ""
    return {
        new
        for name in names
        for inner, old, new in known.numbers.get(name, ())
        if old == value and ((inner == module and nested) or (inner != module and inner.startswith(start)))
    }


def _follow_configuration(thin: nn.Module, cuts: Cuts) -> tuple[Cuts, tuple[str, ...]]:
    """Have a configuration describe a model of transformers again, or say that it does not.

    The fields above were set where a number in them had changed. Others have no number yet (`n_inner`,
    `head_dim`), so a configuration that builds such a model is searched for.
    """
    if not transformers_config.is_built_from_config(thin) or transformers_config.find_problem(thin) is None:
        return cuts, ()
    sets = transformers_config.follow_config(thin)
    if sets and all(transformers_config.states_new_field(thin, op) for op in sets):
        for op in sets:
            transformers_config.state_field(thin, op)
        cuts = cuts.model_copy(update={"operations": (*cuts.operations, *sets)})
    problem = transformers_config.find_problem(thin)
    return cuts, () if problem is None else (f"{problem}; {_FITTING}",)


_FITTING = "the export to huggingface looks for a configuration that does, or writes a modelling file"


def _describe_stale(stale: Iterable[StaleNumber], why: str) -> Iterator[str]:
    """One sentence for all numbers that differ only in the digits of their names."""
    alike: dict[tuple[object, ...], list[StaleNumber]] = {}
    for one in stale:
        alike.setdefault((name_kind(one.name), one.value, one.lengths), []).append(one)
    for first, *more in alike.values():
        values = first.value if isinstance(first.value, tuple) else (first.value,)
        said = ", ".join(map(str, values))
        news = [str(new) for new in first.lengths]
        now = (
            f"the layer now has {news[0]}"
            if len(news) == 1
            else f"the layers now have {', '.join(news[:-1])} and {news[-1]}"
        )
        what = "heads" if is_head_count(first.path.rpartition(".")[2]) else "channels"
        what = what[:-1] if news == ["1"] else what
        yield f"'{first.name}' still says {said}{why}; {now} {what}{_name_others(more)}"


def _name_others(more: Sequence[StaleNumber]) -> str:
    if not more:
        return ""
    if len(more) == 1:
        return f" (likewise '{more[0].name}')"
    return f" (likewise {len(more)} more, up to '{more[-1].name}')"
