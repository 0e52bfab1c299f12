"""Example inputs that fit a model: integers over the vocabulary that it indexes by them, a batch that it
takes."""

from torch import nn

from sparsify.data import Datasets, example_inputs, open_integers
from sparsify.forward.calls import Inputs, add_argument_names, all_tensors, simplify_inputs
from sparsify.forward.fresh_inputs import redraw_tensors
from sparsify.forward.trial_calls import accepts_inputs
from sparsify.graph.trace.vocabulary import add_names_and_vocabularies
from sparsify_schemas.recipe import Recipe


def find_inputs(recipe: Recipe, model: nn.Module, datasets: Datasets | None = None) -> Inputs:
    """Two examples as the recipe says, else from the data; as many as the recipe's own shapes have where the
    model takes no two.

    Integers without `range` or `values` are drawn over the whole vocabulary that the model indexes by them,
    lengths are no longer than the sequences, masks are mixed. Raises DataError.
    """
    drawn = example_inputs(recipe, datasets)
    if recipe.inputs is None and recipe.calls is None:
        return drawn
    drawn, written = _fit_inputs(recipe, model, drawn), example_inputs(recipe, datasets, batch=None)
    drawn_shapes = [tensor.shape for tensor in all_tensors(drawn)]
    differ = drawn_shapes != [tensor.shape for tensor in all_tensors(written)]
    return _fit_inputs(recipe, model, written) if differ and not accepts_inputs(model, drawn) else drawn


def _fit_inputs(recipe: Recipe, model: nn.Module, inputs: Inputs) -> Inputs:
    open_ = open_integers(recipe)
    if not any(open_):
        return inputs
    # First by their names alone, as a length of none or an empty mask would keep the model from running; then
    # by the tables.
    named = redraw_tensors(add_argument_names(model, inputs), 0, open_)
    return simplify_inputs(redraw_tensors(add_names_and_vocabularies(model, named), 0, open_))
