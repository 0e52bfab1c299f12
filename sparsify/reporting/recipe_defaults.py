"""Parts of a recipe in as few words as they can be written in: without what is the default."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from sparsify_schemas.data import Data
from sparsify_schemas.rule import Rule
from sparsify_schemas.stage import Adam, AdamW, Cut, Repair, Sgd, Train


def shorten_entry(path: str, entry: Any) -> Any:
    """A rule, a stage or the data, as resolved, without default values; anything else as it is."""
    if not isinstance(entry, Mapping):
        return entry
    short = _drop_defaults(entry, _find_defaults(path, entry))
    own = short.get("optimizer")
    if isinstance(own, Mapping):
        short["optimizer"] = _drop_defaults(own, _PLAIN_OPTIMIZERS.get(str(own.get("kind")), {}))
    return short


def unfold_constants(value: Any) -> Any:
    """The value with the number of each constant schedule in its place."""
    if isinstance(value, Mapping):
        if value.keys() == {"kind", "value"} and value["kind"] == "constant":
            return value["value"]
        return {k: unfold_constants(v) for k, v in value.items()}
    return [unfold_constants(v) for v in value] if isinstance(value, list | tuple) else value


def _drop_defaults(entry: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in entry.items() if v is not None and not (k in defaults and defaults[k] == v)}


def _find_defaults(path: str, entry: Mapping[str, Any]) -> Mapping[str, Any]:
    match path:
        case "rules":
            return _PLAIN_RULE
        case "stages":
            return _PLAIN_STAGES.get(str(entry.get("kind")), {})
        case "data":
            return _PLAIN_DATA
        case _:
            return {}


def _list_defaults(plain: BaseModel, *named: str) -> dict[str, Any]:
    """What a part says that says as little as it can, less the keys that name it."""
    body = unfold_constants(plain.model_dump(mode="json", by_alias=True))
    return {key: value for key, value in body.items() if key not in ("kind", *named)}


_SGD = Sgd(kind="sgd", lr=0)
_PLAIN_RULE = _list_defaults(Rule(layers=("*",), group="filter"), "layers", "group")
_PLAIN_DATA = _list_defaults(Data(source="digits"), "source")
_PLAIN_OPTIMIZERS: Mapping[str, Mapping[str, Any]] = {
    made.kind: _list_defaults(made, "lr")
    for made in (_SGD, Adam(kind="adam", lr=0), AdamW(kind="adamw", lr=0))
}
_PLAIN_STAGES: Mapping[str, Mapping[str, Any]] = {
    "train": _list_defaults(Train(kind="train", epochs=1, optimizer=_SGD), "name", "epochs", "optimizer"),
    "cut": _list_defaults(Cut(kind="cut"), "name"),
    "repair": _list_defaults(Repair(kind="repair"), "name"),
}
