"""`sparsify init`: write a commented recipe to start from, or copy one that ships with the package."""

from pathlib import Path
from typing import Annotated

import typer

from sparsify.errors import RunError
from sparsify.files import check_folder, write_bytes
from sparsify_cli.output import write_result
from sparsify_cli.render import say
from sparsify_cli.shipped import RecipeCopy, copy_recipe, recipe_names

SAMPLE = """\
# yaml-language-server: $schema=recipe.schema.json
# With that file beside this one (`sparsify schema recipe > recipe.schema.json`) an editor checks the recipe.
# Check the recipe with `sparsify validate {name}`, run it with `sparsify apply {name} --from-scratch`.
# `sparsify explain rules` (or budget, group_lasso, filter, ...) explains a word.
version: 1
title: Digits with fewer filters

vars: {{epochs: 15}}                # used as ${{epochs}}; `--set epochs=3` for a quick try
seed: 0

model:                            # how to build the dense model, for a file of weights or from scratch
  build: sparsify.models.digits_cnn
  args: {{classes: 10}}

data:
  source: digits                  # 8x8 images from scikit-learn; also mnist, cifar10, a folder, an .npz ...
  validation: 20%                 # all choices are made on this part; the test set is read once, at the end

targets:                          # hardware on which dense and cut model are timed side by side
  here: {{kind: cpu, threads: 1, batch: 1}}

budget:
  macs: 40%                       # at most 40 % of the dense model's multiply-accumulates remain

rules:
  - layers: Conv2d                # a layer class; a glob on names such as "conv*"; or re:<regular expression>
    group: filter                 # remove filters, and everything that depends on them
    penalty: {{kind: group_lasso, strength: 3e-3}}
    criterion: {{kind: magnitude}}  # which filters go first if the budget needs more than the zero ones
    keep: {{at_least: 2}}           # in every layer

stages:
  - kind: train                   # with the penalty, which drives filters to zero
    name: learn
    epochs: ${{epochs}}
    batch: 32
    optimizer: {{kind: sgd, lr: 0.05, momentum: 0.9}}
  - kind: cut                     # remove zero and unimportant filters; verify the cut model
  - kind: train                   # without the penalty, so that the remaining filters recover
    name: finetune
    epochs: 5
    batch: 32
    penalties: false
    optimizer: {{kind: sgd, lr: 0.01, momentum: 0.9}}
"""


DEFAULT = Path("recipe.yaml")


def _complete_name(incomplete: str) -> list[str]:
    return [name for name in recipe_names() if name.startswith(incomplete)]


def command(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE",
            help="Where to write it. When left out: recipe.yaml, or NAME.yaml with --from.",
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="NAME",
            help="Copy this recipe of the package; `sparsify recipes` lists them.",
            show_default=False,
            autocompletion=_complete_name,
        ),
    ] = None,
) -> None:
    """Write a commented recipe to start from, or copy one that ships with the package; never overwrites a
    file."""
    copy = _make_sample(file or DEFAULT) if name is None else copy_recipe(name, file or Path(f"{name}.yaml"))
    new = {path: text for path, text in copy.texts.items() if not _has_text(path, text)}
    for path in (copy.recipe, *new):
        if path.exists() or path.is_symlink():
            raise _make_error(path)
        check_folder(path)
    for path, text in new.items():
        write_bytes(path, text.encode(), shared=True)
        write_result(str(path))
    say(f"next: sparsify validate {copy.recipe}, then {copy.command}")


def _make_sample(file: Path) -> RecipeCopy:
    command = f"sparsify apply {file} --from-scratch"
    return RecipeCopy(file, {file: SAMPLE.format(name=file)}, command)


def _has_text(path: Path, text: str) -> bool:
    """Whether a file is there with this text: two recipes may share a Python file."""
    try:
        return path.is_file() and path.read_text(encoding="utf-8") == text
    except (OSError, ValueError):
        return False


def _make_error(path: Path) -> RunError:
    return RunError(f"{path}: exists already; name another file, or remove it first")
