"""Group types: which weights live and die together."""

from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator

Kind = Literal["filter", "channel", "neuron", "head", "hidden", "depth", "weight"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Alias = Literal[
    "filters", "out_channel", "channels", "in_channel", "neurons", "heads", "attention_head", "hidden_unit", "hidden_units", "layer", "branch", "element", "unstructured"
]
ALIASES: dict[str, Kind] = {
    "filters": "filter",
    "out_channel": "filter",
    "channels": "channel",
    "in_channel": "channel",
    "neurons": "neuron",
    "heads": "head",
    "attention_head": "head",
    "hidden_unit": "hidden",
    "hidden_units": "hidden",
    "layer": "depth",
    "branch": "depth",
    "element": "weight",
    "unstructured": "weight",
}

MEANING: dict[Kind, str] = {
    "filter": "W[n,:,:,:] of a convolution: one output feature map, with everything coupled to it (normalisation, the consumers' input slices, layers joined by a residual sum)",
    "channel": "W[:,c,:,:] of a convolution: one input feature map, with the filters that produce it",
    "neuron": "W[n,:] of a Linear layer: one output unit, with its bias and the consumers' columns; a column of an embedding",
    "head": "one attention head: its rows of the query, key and value projections and its columns of the output projection; where several query heads share a key-value head, the whole of them; where the size of a head follows the width of the stream, its share of that",
    "hidden": "one hidden unit of an LSTM, GRU or RNN (or of a cell) over all gates, layers and directions (intrinsic sparse structure, arXiv:1709.05027), with the consumers' columns",
    "depth": "a residual block or branch as a whole: what remains of it is its shortcut (layer depth of SSL, arXiv:1608.03665; dropping blocks of a transformer)",
    "weight": "one element of a weight tensor; it is set to zero and stays in the tensor, so the file and the latency do not change",
}


def _canonical(value: Any) -> Any:
    return ALIASES.get(value, value) if isinstance(value, str) else value


Group = Annotated[Kind, BeforeValidator(_canonical, json_schema_input_type=Kind | Alias)]
