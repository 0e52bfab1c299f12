"""What operators on complex numbers, Fourier transforms, sparse products and linear algebra do to labels."""

from torch import Tensor

from sparsify.graph.trace.axis_labels import AxisLabels, varying_dims
from sparsify.graph.trace.contraction_labels import follow_product
from sparsify.graph.trace.operators import read_argument, wrap_dim
from sparsify.graph.trace.rule_api import Follower, Op, Rule

# complex numbers


def _view_as_complex(w: Follower, op: Op) -> AxisLabels:
    """[..., 2] -> [...]: both parts of a number are removed together.

    Numbers that lie in a part of each row of a tensor must begin at even places in all rows, so what is
    beside them in a row leaves in twos (the latent of keys and values of DeepSeek-V2).
    """
    rows = op.args[0]._base
    if rows is not None and rows.dim() and not op.args[0].is_contiguous():
        w.algebra.tie_runs(w.labels_of(rows), rows.dim() - 1, 2)
    x = w.labels_of(op.args[0])
    last = len(x.shape) - 1
    paired = w.algebra.hold_all(x, {last}, "it is one part of complex numbers")
    return w.algebra.move_labels(paired, lambda t: t.select(last, 0), op.out.shape)


def _view_as_real(w: Follower, op: Op) -> AxisLabels:
    """[...] -> [..., 2]"""
    x = w.labels_of(op.args[0])
    aspects = tuple(aspect.unsqueeze(-1) for aspect in x.aspects)
    return AxisLabels(tuple(op.out.shape), aspects, x.parameter, x.flexible)


def _of_parts(w: Follower, op: Op) -> AxisLabels:
    """Real and imaginary part, or length and angle, of one shape after broadcasting."""
    return w.algebra.join_elementwise(op.out.shape, [w.labels_of(part) for part in op.args[:2]])


def _same(w: Follower, op: Op) -> AxisLabels:
    return w.labels_of(op.args[0])


# Fourier transforms


def _fourier(w: Follower, op: Op) -> AxisLabels:
    """Elements along the transformed dimensions all depend on each other; along the others they do not."""
    x = w.labels_of(op.args[0])
    along = {wrap_dim(dim, op.args[0]) for dim in op.args[1]}
    held = w.algebra.hold_all(x, along, "a Fourier transform runs along it")
    return AxisLabels(tuple(op.out.shape), held.aspects, x.parameter)


# linear algebra


def _matrices(w: Follower, op: Op) -> AxisLabels | list[AxisLabels]:
    """The last two dimensions are a matrix, which is taken as a whole; the others count matrices."""
    x = w.labels_of(op.args[0])
    rank = len(x.shape)
    held = w.algebra.hold_all(x, {rank - 2, rank - 1}, f"'{op.name}' takes whole matrices")
    if (
        x.parameter
    ):  # a weight of zeros is none afterwards (exp(0) = 1): no masked model could be compared with
        held = w.algebra.hold_all(held, set(range(rank)), f"a weight passes through '{op.name}'")
    results = [op.out] if isinstance(op.out, Tensor) else list(op.out)
    made = [_label_batch(held, result, x.shape[: rank - 2]) for result in results]
    return made[0] if isinstance(op.out, Tensor) else made


def _label_batch(held: AxisLabels, result: object, batch: tuple[int, ...]) -> AxisLabels:
    """The labels of a result whose first dimensions count matrices like those of the operand."""
    if not isinstance(result, Tensor):
        return AxisLabels(())
    own = tuple(result.shape)
    rest = len(own) - len(batch)
    assert own[: len(batch)] == batch
    aspects = tuple(
        aspect[..., 0, 0].reshape([*aspect.shape[: len(batch)], *[1] * rest]) for aspect in held.aspects
    )
    return AxisLabels(own, aspects, held.parameter)


def _solve(w: Follower, op: Op) -> AxisLabels | list[AxisLabels]:
    """A X = B: every column of B is solved separately, with the same matrix."""
    a, b = w.labels_of(op.args[0]), w.labels_of(op.args[1])
    left = read_argument(op.args, op.kwargs, 2, "left", True)
    rank = len(a.shape)
    held = w.algebra.hold_all(a, {rank - 2, rank - 1}, f"'{op.name}' takes whole matrices")
    if len(b.shape) != rank or not left:
        right = w.algebra.hold_all(b, set(range(len(b.shape))), f"'{op.name}' takes whole matrices")
        batch = AxisLabels(b.shape, right.aspects)
    else:
        batch = w.algebra.hold_all(b, {rank - 2}, f"'{op.name}' takes whole matrices")
    result = op.out if isinstance(op.out, Tensor) else op.out[0]
    counted = AxisLabels((*a.shape[: rank - 2], 1, 1), tuple(aspect[..., :1, :1] for aspect in held.aspects))
    made = w.algebra.join_elementwise(result.shape, [counted, batch])
    if isinstance(op.out, Tensor):
        return made
    return [made, *(AxisLabels(tuple(other.shape)) for other in op.out[1:])]


def _none(_w: Follower, _op: Op) -> list[AxisLabels]:
    """It only checks for errors."""
    return []


# sparse products


def _sparse_mm(w: Follower, op: Op) -> AxisLabels:
    return follow_product(w.algebra, w.labels_of(op.args[0]), w.labels_of(op.args[1]), set(), op.out.shape)


def _sparse_addmm(w: Follower, op: Op) -> AxisLabels:
    made = follow_product(w.algebra, w.labels_of(op.args[1]), w.labels_of(op.args[2]), set(), op.out.shape)
    if not has_labels(w.labels_of(op.args[0])):
        return made
    return w.algebra.join_elementwise(op.out.shape, [made, w.labels_of(op.args[0])])


def has_labels(axis_labels: AxisLabels) -> bool:
    return any(varying_dims(aspect) for aspect in axis_labels.aspects)


MATRICES = tuple(
    "_linalg_det _linalg_eigh _linalg_slogdet _linalg_svd linalg_cholesky_ex linalg_eig "
    "linalg_householder_product linalg_inv_ex linalg_lu_factor_ex linalg_matrix_exp linalg_pinv linalg_qr "
    "cholesky cholesky_inverse inverse".split()
)
COMPLEX_RULES: dict[str, Rule] = {
    "_conj": _same,
    "_fft_c2c": _fourier,
    "_fft_c2r": _fourier,
    "_fft_r2c": _fourier,
    "_linalg_check_errors": _none,
    "_linalg_solve_ex": _solve,
    "_neg_view": _same,
    "_sparse_addmm": _sparse_addmm,
    "_sparse_mm": _sparse_mm,
    "complex": _of_parts,
    "convert_element_type": _same,
    "polar": _of_parts,
    "view_as_complex": _view_as_complex,
    "view_as_real": _view_as_real,
    **dict.fromkeys(MATRICES, _matrices),
}
