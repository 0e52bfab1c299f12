"""What members of lists of experts are called once others have left: they are counted anew. Imports no
torch."""

from collections.abc import Iterable, Sequence

from sparsify_schemas.cuts import Cuts, Shorten


def find_shortened(cuts: Cuts) -> tuple[Shorten, ...]:
    """What a log says of lists."""
    return tuple(op for op in cuts.operations if isinstance(op, Shorten))


def list_kept_members(op: Shorten) -> list[int]:
    """The members that stay, by their old numbers."""
    return [at for start, end in op.keep for at in range(start, end)]


def rename(name: str, shortened: Iterable[Shorten]) -> str | None:
    """The name of a module or tensor in the model with shorter lists; None if it left."""
    for op in shortened:
        if name.startswith(f"{op.module}."):
            member, dot, rest = name[len(op.module) + 1 :].partition(".")
            number = member.removeprefix(op.prefix)
            stay = list_kept_members(op)
            if not number.isdecimal() or int(number) not in stay:
                return None
            return f"{op.module}.{op.prefix}{stay.index(int(number))}{dot}{rest}"
    return name


def find_old_names(names: Iterable[str], shortened: Sequence[Shorten]) -> dict[str, str]:
    """Name in the model with shorter lists -> name before, of these names of modules or tensors."""
    found = {}
    for name in names:
        new = rename(name, shortened)
        if new is not None:
            found[new] = name
    return found


def rename_in_turn(name: str, shortened: Iterable[Shorten]) -> str | None:
    """The same after cuts that each went on with what the one before had left."""
    found: str | None = name
    for op in shortened:
        found = None if found is None else rename(found, (op,))
    return found


def list_kept_widths(rounds: Iterable[Cuts]) -> dict[str, int]:
    """Coupled group, by its name in the dense model -> units that the cuts have left of it; the last cut has
    the last word. Groups that no cut speaks of are left out."""
    kept: dict[str, int] = {}
    before: list[Shorten] = []
    for cuts in rounds:
        for width in cuts.widths:
            kept[_find_dense_name(width.group, before)] = width.kept
        before += find_shortened(cuts)
    return kept


def _find_dense_name(name: str, before: Sequence[Shorten]) -> str:
    """The name that a group had before lists got shorter."""
    for op in reversed(before):
        if name.startswith(f"{op.module}."):
            member, dot, rest = name[len(op.module) + 1 :].partition(".")
            number = member.removeprefix(op.prefix)
            if number.isdecimal():
                name = f"{op.module}.{op.prefix}{list_kept_members(op)[int(number)]}{dot}{rest}"
    return name
