"""The model card of an exported folder, README.md, made from the run's report and recipe."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from sparsify.exporters import modeling_file
from sparsify.files import read_bytes
from sparsify.reporting.report_file import read_report
from sparsify.reporting.report_tables import to_markdown
from sparsify.runs import run_folder

NAME = "README.md"
_INHERITED = ("license", "license_name", "license_link", "language", "pipeline_tag", "base_model")
"""Metadata of the original's card that hold for the cut model too."""


def write(model: nn.Module, run: Path, original: Path | None, folder: Path) -> None:
    """Write the card: what the model is, how it is loaded, what was cut and measured, and the recipe.

    original: a folder whose card says which licence and language the model has.
    """
    report = read_report(run)
    metadata: dict[str, Any] = {"library_name": "transformers", "tags": ["sparsify", "pruning"]}
    metadata |= {} if original is None else _read_metadata(original)
    heading, *rest = to_markdown(report).splitlines()
    page = "\n".join(_nest_headings(rest)).strip()
    recipe = read_bytes(run / run_folder.RECIPE).decode().strip()
    parts = (
        f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---",
        heading,
        f"A {_dense_name(model)} of transformers, cut by "
        "[sparsify](https://pypi.org/project/sparsify-recipes/).",
        "## How to load it",
        f"```python\n{_loading_code(model, folder)}\n```",
        "## What was cut and measured",
        page,
        "## The recipe",
        f"```yaml\n{recipe}\n```",
    )
    (folder / NAME).write_text("\n\n".join(parts) + "\n")


def _dense_name(model: nn.Module) -> str:
    return type(model).__name__.removeprefix("Cut")


def _loading_code(model: nn.Module, folder: Path) -> str:
    """Python that loads the folder."""
    own: Any = model
    auto_map = getattr(own.config, "auto_map", None)
    kind = (
        next(iter(auto_map)) if auto_map and (folder / modeling_file.NAME).is_file() else _dense_name(model)
    )
    trust = ", trust_remote_code=True" if kind != _dense_name(model) else ""
    return f'from transformers import {kind}\n\nmodel = {kind}.from_pretrained("PATH OF THIS FOLDER"{trust})'


def _nest_headings(lines: list[str]) -> Iterator[str]:
    """The report's headings one level lower."""
    for line in lines:
        yield f"#{line}" if line.startswith("#") else line


def _read_metadata(original: Path) -> dict[str, Any]:
    """What the card of the original says about licence and language; nothing if it has no readable card."""
    try:
        _, head, _ = (original / NAME).read_text().split("---\n", 2)
        found = yaml.safe_load(head)
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {key: found[key] for key in _INHERITED if key in found}
