"""Sizes are checked before memory is asked for, and refused with the figure, before the first epoch."""

import gzip
import io
import struct
import zipfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch.utils.data import IterableDataset

from sparsify.data import callables, load_data
from sparsify.errors import DataError
from sparsify.forward import free_memory
from sparsify_cli.app import exit_code
from sparsify_schemas.data import Data

RECIPE = {
    "version": 1,
    "title": "Small",
    "model": {"build": "sparsify.models.digits_cnn"},
    "data": {"source": "digits", "validation": "10%"},
    "rules": [{"layers": "conv*", "group": "filter"}],
    "stages": [
        {"kind": "train", "name": "x", "epochs": 1, "optimizer": {"kind": "sgd", "lr": 0.1}},
        {"kind": "cut"},
    ],
}
FREE = 2**30


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 1 GiB of free memory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(free_memory, "read_free_memory", lambda: FREE)
    monkeypatch.setattr("sparsify.runs.preflight.read_free_memory", lambda: FREE)
    Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE))


def call(*overrides: str, command: str = "plan") -> int:
    sets = [part for text in overrides for part in ("--set", text)]
    return exit_code([command, "recipe.yaml", "--from-scratch", *sets])


def write_npz(shape: tuple[int, ...], body: bytes = b"", compressed: bool = False) -> None:
    """Four arrays whose headers say the shape, and hold the body."""
    header = io.BytesIO()
    np.lib.format.write_array_header_2_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    kind = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile("x.npz", "w", kind) as archive:
        for name in ("x_train", "y_train", "x_test", "y_test"):
            archive.writestr(f"{name}.npy", header.getvalue() + body)


def test_the_batch_of_a_target(capsys: pytest.CaptureFixture[str]) -> None:
    large = "targets.t={kind: cpu, runtime: eager, batch: 1000000000}"
    assert call(large) == 1
    err = capsys.readouterr().err
    assert err.startswith("target 't' has batch 1,000,000,000, and about ")
    assert err.endswith(" examples fit into the 1.00 GiB of memory that are free; set a smaller batch\n")
    assert call(large, command="apply") == 1
    assert not Path("runs").exists()
    assert call("targets.t={kind: cpu, runtime: eager, batch: 64}") == 0


def test_example_inputs(capsys: pytest.CaptureFixture[str]) -> None:
    Path("recipe.yaml").write_text(
        yaml.safe_dump(
            {key: value for key, value in RECIPE.items() if key not in ("data", "stages")}
            | {"inputs": [{"shape": [2, 1, 1000000, 1000000]}]}
        )
    )
    assert call() == 1
    assert capsys.readouterr().err == (
        "example inputs of 2x1x1000000x1000000, with copies for trial calls, would take 29802 GiB of memory, "
        "and 1.00 GiB are free; name a smaller shape\n"
    )


def test_an_array_that_says_more_than_the_file_holds(capsys: pytest.CaptureFixture[str]) -> None:
    write_npz((10**12, 1, 8, 8), b"1234")
    assert call("data={source: x.npz}") == 1
    assert capsys.readouterr().err == (
        "x.npz: x_train of 1000000000000x1x8x8 float32 would take 256,000,000,000,000 bytes, "
        "and the file holds 4 of it\n"
    )


def test_a_small_file_that_unpacks_to_much(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(free_memory, "read_free_memory", lambda: 2**20)
    write_npz((10_000, 1, 8, 8), bytes(10_000 * 64 * 4), compressed=True)
    assert Path("x.npz").stat().st_size < 20_000
    assert call("data={source: x.npz}") == 1
    assert capsys.readouterr().err == (
        "x.npz: x_train of 10000x1x8x8 float32 would take 2.44 MiB of memory, and 1.00 MiB are free; "
        "use a part of it\n"
    )


def test_images_resized_beyond_measure(capsys: pytest.CaptureFixture[str]) -> None:
    image = pytest.importorskip("PIL.Image")
    for part in ("train", "test"):
        for name in ("a", "b"):
            (Path("images") / part / name).mkdir(parents=True)
            image.new("L", (8, 8)).save(Path("images") / part / name / "1.png")
    assert call("data={source: folder, root: images, size: 100000}") == 1
    assert capsys.readouterr().err == (
        "2 images of 1x100000x100000 would take 18.6 GiB of memory, and 1.00 GiB are free; "
        "set a smaller data.size\n"
    )


def test_masks_resized_beyond_measure(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mask takes 8 bytes a pixel, an image of one channel 1."""
    image = pytest.importorskip("PIL.Image")
    monkeypatch.setattr(free_memory, "read_free_memory", lambda: 2**20)
    for part in ("train", "test"):
        for kind in ("images", "masks"):
            (Path("scenes") / part / kind).mkdir(parents=True)
            image.new("L", (8, 8)).save(Path("scenes") / part / kind / "1.png")
    assert call("data={source: folder, root: scenes, size: 512}", "task={kind: segmentation}") == 1
    assert capsys.readouterr().err == (
        "1 masks of 512x512 would take 2.00 MiB of memory, and 1.00 MiB are free; set a smaller data.size\n"
    )


def test_a_packed_idx_file_that_unpacks_to_much(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """5 GB of zeros from 5 MB here would do; no more is unpacked than the header says."""
    monkeypatch.setattr(free_memory, "read_free_memory", lambda: 2**20)
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part, examples in (("train", 4000), ("t10k", 10)):
        images = struct.pack(">4I", 0x803, examples, 28, 28) + bytes(examples * 784 + 2**22)
        labels = struct.pack(">2I", 0x801, examples) + bytes(examples)
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    spec = Data.model_validate({"source": "mnist", "root": str(tmp_path)})
    path = folder / "train-images-idx3-ubyte.gz"
    with pytest.raises(DataError) as caught:
        load_data(spec, 0)
    assert str(caught.value) == (
        f"{path}, unpacked, would take 2.99 MiB of memory, and 1.00 MiB are free; use a part of it"
    )
    monkeypatch.setattr(free_memory, "read_free_memory", lambda: FREE)
    with pytest.raises(DataError) as caught:
        load_data(spec, 0)
    assert str(caught.value) == (
        f"{path}: more bytes where its header promises {4000 * 784 + 16}; download it again"
    )


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return ((torch.zeros(1, 8, 8), number % 10) for number in count())


def test_a_set_without_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callables, "MOST", 50)
    monkeypatch.setattr(callables, "resolve_callable", lambda key, path: lambda: (Endless(), Endless()))
    with pytest.raises(DataError) as caught:
        load_data(Data.model_validate({"source": "mine:load"}), 0)
    assert str(caught.value) == (
        "mine:load: train: the Dataset has no length and more than 50 examples; write its `__len__`"
    )


@pytest.mark.parametrize(
    ("mean", "std", "said"),
    [
        (0.5, 1e-300, "a pixel of 0 -inf in channel 0 (mean 0.5, std 1e-300)"),
        (1e300, 1.0, "a pixel of 0 -inf in channel 0 (mean 1e+300, std 1)"),
        (0.5, 1e-38, "a pixel of 0 -5.0e+37 in channel 0 (mean 0.5, std 1e-38)"),
        (0.0, 1e-35, "a pixel of 1 1.0e+35 in channel 0 (mean 0, std 1e-35)"),
    ],
)
def test_a_normalisation_beyond_float32(mean: float, std: float, said: str) -> None:
    spec = Data.model_validate({"source": "digits", "normalize": {"mean": [mean], "std": [std]}})
    with pytest.raises(DataError) as caught:
        load_data(spec, 0)
    assert str(caught.value) == f"data.normalize makes {said}; mean and std are those of pixels in 0..1"


def test_free_memory_is_known_here_and_may_be_unknown_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    free = free_memory.read_free_memory()
    assert free is None or free > 0
    monkeypatch.setattr(free_memory, "_read_available", lambda: None)
    monkeypatch.setattr(free_memory, "_read_group_limit", lambda: None)
    free_memory.check_memory(10**30, "it", "", DataError)
