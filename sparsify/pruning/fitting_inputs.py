"""Example inputs that fit a model: integers over the vocabulary that it indexes by them, a batch that it takes."""

from torch import nn

from sparsify.data import Datasets, example_inputs, open_integers
from sparsify.forward.calls import Inputs, all_tensors, plain, with_names
from sparsify.forward.fresh_inputs import redrawn_at
from sparsify.forward.trial_calls import takes
from sparsify.graph.trace.vocabulary import understood
from sparsify_schemas.recipe import Recipe


def inputs_for(recipe: Recipe, model: nn.Module, datasets: Datasets | None = None) -> Inputs:
    """Two examples as the recipe says, else from the data; as many as the recipe's own shapes have where the model takes no two.

    Integers without `range` or `values` are drawn over the whole vocabulary that the model indexes by them, lengths are no
    longer than the sequences, masks are mixed. Raises DataError.
    """
    drawn = example_inputs(recipe, datasets)
    if recipe.inputs is None and recipe.calls is None:
        return drawn
    drawn, written = _fitted(recipe, model, drawn), example_inputs(recipe, datasets, batch=None)
    differ = [a.shape for a in all_tensors(drawn)] != [a.shape for a in all_tensors(written)]
    return _fitted(recipe, model, written) if differ and not takes(model, drawn) else drawn


def _fitted(recipe: Recipe, model: nn.Module, inputs: Inputs) -> Inputs:
    open_ = open_integers(recipe)
    if not any(open_):
        return inputs
    # First by their names alone, as a length of none or an empty mask would keep the model from running; then by the tables.
    named = redrawn_at(with_names(model, inputs), 0, open_)
    return plain(redrawn_at(understood(model, named), 0, open_))
