import gzip
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sparsify.data import Datasets, Examples, batches, example_inputs, load_data
from sparsify.errors import DataError
from sparsify_schemas.data import Augment, Data
from sparsify_schemas.recipe import Recipe


def load(seed: int = 0, **spec: Any) -> Datasets:
    return load_data(Data.model_validate(spec), seed)


def complaint(seed: int = 0, **spec: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(seed, **spec)
    return str(caught.value)


# --- digits


def test_digits_split_is_the_same_for_every_seed_and_holds_a_fifth_of_each_digit() -> None:
    a, b = load(source="digits"), load(seed=9, source="digits")
    assert (len(a.train), len(a.validation), len(a.test), a.classes) == (1294, 144, 359, 10)
    assert torch.equal(a.test.inputs, b.test.inputs)
    assert not torch.equal(a.validation.inputs, b.validation.inputs)
    assert a.train.inputs.shape[1:] == (1, 8, 8)
    assert float(a.train.inputs.min()) == 0 and float(a.train.inputs.max()) == 1
    assert all(34 <= int((a.test.targets == c).sum()) <= 37 for c in range(10))


def test_digits_without_scikit_learn_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert complaint(source="digits") == (
        "data source digits needs scikit-learn, which is not installed: pip install 'sparsify-recipes[demo]'"
    )


# --- IDX


def idx(magic: int, shape: tuple[int, ...], content: bytes) -> bytes:
    return struct.pack(f">{1 + len(shape)}I", magic, *shape) + content


def write_mnist(root: Path, name: str = "MNIST", train: int = 20, test: int = 10) -> Path:
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    for part, n in (("train", train), ("t10k", test)):
        pixels = (np.arange(n * 784) % 256).astype(np.uint8)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(0x803, (n, 28, 28), pixels.tobytes()))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(
            idx(0x801, (n,), (np.arange(n) % 10).astype(np.uint8).tobytes())
        )
    return folder


def test_mnist_reads_raw_and_gzipped_files(tmp_path: Path) -> None:
    folder = write_mnist(tmp_path)
    raw = load(source="mnist", root=str(tmp_path))
    for path in list(folder.iterdir()):
        (folder / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    zipped = load(source="mnist", root=str(tmp_path))
    assert (len(raw.train), len(raw.validation), len(raw.test), raw.classes) == (18, 2, 10, 10)
    assert raw.train.inputs.dtype == torch.uint8 and raw.train.inputs.shape[1:] == (1, 28, 28)
    assert torch.equal(raw.test.inputs, zipped.test.inputs) and torch.equal(
        raw.train.targets, zipped.train.targets
    )
    assert raw.test.inputs[0].flatten()[:256].tolist() == list(range(256))
    assert float(raw.test.ready()[0, 0, 0, 27]) == pytest.approx(27 / 255)


def test_environment_variable_gives_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(tmp_path, "FashionMNIST")
    monkeypatch.setenv("SPARSIFY_DATA", str(tmp_path))
    assert len(load(source="fashion_mnist").test) == 10


@pytest.mark.parametrize(("source", "name"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_absent_mnist_says_where_it_looked_and_what_brings_it(tmp_path: Path, source: str, name: str) -> None:
    (tmp_path / name / "raw").mkdir(parents=True)
    (tmp_path / name / "raw" / "train-images-idx3-ubyte.gz").touch()
    assert complaint(source=source, root=str(tmp_path)) == (
        f"{name} is not there: {tmp_path}/{name}/raw has no "
        "train-labels-idx1-ubyte, t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte "
        "(raw or .gz)\n"
        f'  get it:     python -c "from torchvision.datasets import {name}; '
        f"{name}('{tmp_path}', download=True)\"\n"
        f"  or point data.root or $SPARSIFY_DATA at the folder that holds {name}/raw"
    )


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "train-images-idx3-ubyte",
            b"",
            "0 bytes are too short for an IDX file of images; download it again",
        ),
        (
            "train-labels-idx1-ubyte",
            b"abc",
            "3 bytes are too short for an IDX file of labels; download it again",
        ),
        (
            "train-images-idx3-ubyte",
            idx(0x801, (20, 28, 28), b""),
            "not an IDX file of images (starts with 0x00000801, expected 0x00000803)",
        ),
        (
            "train-images-idx3-ubyte",
            idx(0x803, (20, 28, 28), b"\0" * 99),
            "115 bytes where its header promises 15696; download it again",
        ),
        (
            "train-images-idx3-ubyte",
            idx(0x803, (2**32 - 1,) * 3, b"\0" * 99),
            "115 bytes where its header promises 79228162458924105385300197391; download it again",
        ),
        (
            "t10k-labels-idx1-ubyte",
            idx(0x801, (10,), bytes([0] * 9 + [11])),
            "label 11 is out of range, expected 0 to 9",
        ),
    ],
)
def test_broken_idx_files(tmp_path: Path, file: str, content: bytes, message: str) -> None:
    folder = write_mnist(tmp_path)
    (folder / file).write_bytes(content)
    assert complaint(source="mnist", root=str(tmp_path)) == f"{folder / file}: {message}"


def test_idx_files_that_do_not_belong_together(tmp_path: Path) -> None:
    folder = write_mnist(tmp_path)
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(0x801, (3,), b"\0\1\2"))
    assert (
        complaint(source="mnist", root=str(tmp_path))
        == f"{folder}: train has 20 images and 3 labels; fetch both files again"
    )


def test_broken_gzip(tmp_path: Path) -> None:
    folder = write_mnist(tmp_path)
    whole = gzip.compress((folder / "train-images-idx3-ubyte").read_bytes())
    (folder / "train-images-idx3-ubyte").unlink()
    (folder / "train-images-idx3-ubyte.gz").write_bytes(whole[: len(whole) // 2])
    said = complaint(source="mnist", root=str(tmp_path))
    assert said.startswith(f"{folder}/train-images-idx3-ubyte.gz: cannot be read (") and said.endswith(
        "; download it again"
    )


# --- CIFAR-10


def write_cifar(root: Path) -> Path:
    folder = root / "cifar-10-batches-bin"
    folder.mkdir()
    for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
        with (folder / name).open("wb") as file:
            file.write(bytes([7]) + bytes([1] * 1024 + [2] * 1024 + [3] * 1024))
            file.truncate(30_730_000)
    return folder


def test_cifar10_reads_the_binary_layout_and_its_faults(tmp_path: Path) -> None:
    folder = write_cifar(tmp_path)
    data = load(source="cifar10", root=str(tmp_path), split="last")
    assert (len(data.train), len(data.validation), len(data.test)) == (45_000, 5_000, 10_000)
    assert data.train.inputs[0].flatten(1).float().mean(1).tolist() == [1, 2, 3]
    assert data.train.targets[0] == 7 and data.train.targets[1] == 0

    with (folder / "data_batch_3.bin").open("r+b") as file:
        file.write(bytes([12]))
    assert complaint(source="cifar10", root=str(tmp_path)) == (
        f"{folder}/data_batch_3.bin: label 12 is out of range, expected 0 to 9; this is not CIFAR-10"
    )
    with (folder / "data_batch_2.bin").open("r+b") as file:
        file.truncate(30_729_999)
    assert complaint(source="cifar10", root=str(tmp_path)) == (
        f"{folder}/data_batch_2.bin: 30729999 bytes where 30730000 were expected; download it again"
    )


def test_absent_cifar10(tmp_path: Path) -> None:
    assert complaint(source="cifar10", root=str(tmp_path)) == (
        f"CIFAR-10 is missing: {tmp_path}/cifar-10-batches-bin has no "
        "data_batch_1.bin, data_batch_2.bin, data_batch_3.bin, "
        "data_batch_4.bin, data_batch_5.bin, test_batch.bin\n"
        f"  get it:     mkdir -p '{tmp_path}' && curl -L "
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz | tar xz -C "
        f"'{tmp_path}'\n"
        "  or point data.root or $SPARSIFY_DATA at the folder that holds cifar-10-batches-bin"
    )


# --- folder of images


def picture(path: Path, value: int, size: tuple[int, int] = (6, 4), mode: str = "RGB") -> None:
    image = pytest.importorskip("PIL.Image")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.new(mode, size, value if mode == "L" else (value, 0, 0)).save(path)


def pictures(root: Path, mode: str = "RGB") -> None:
    for part in ("train", "test"):
        for name, value in (("cat", 10), ("dog", 20)):
            for i in range(2):
                picture(root / part / name / f"{i}.png", value + i, mode=mode)
    (root / "train" / ".DS_Store").touch()
    (root / "train" / "cat" / ".hidden").touch()


def test_folder_numbers_classes_by_name(tmp_path: Path) -> None:
    pictures(tmp_path)
    data = load(source="folder", root=str(tmp_path), validation="25%", split="last")
    assert data.classes == 2
    assert data.train.inputs.shape == (3, 3, 4, 6) and data.train.inputs.dtype == torch.uint8
    assert data.train.targets.tolist() == [0, 0, 1]
    assert data.train.inputs[:, 0, 0, 0].tolist() == [10, 11, 20]
    assert len(data.validation) == 1


def test_folder_of_gray_images_has_one_channel_and_one_coloured_image_makes_three(tmp_path: Path) -> None:
    pictures(tmp_path, mode="L")
    assert load(source="folder", root=str(tmp_path), size=5).test.inputs.shape == (4, 1, 5, 5)
    picture(tmp_path / "test" / "dog" / "2.png", 9)
    assert load(source="folder", root=str(tmp_path)).train.inputs.shape[1] == 3


def test_folder_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(**more: Any) -> str:
        return complaint(source="folder", root=str(tmp_path), **more)

    assert said() == (
        f"data source folder: {tmp_path}/train does not exist; expected "
        "train/<class>/ and test/<class>/ under data.root"
    )
    (tmp_path / "train").mkdir()
    assert (
        said()
        == f"{tmp_path}/train: has no class folders; expected <class>/ with the images of one class each"
    )
    pictures(tmp_path)
    picture(tmp_path / "test" / "fish" / "0.png", 1)
    assert said() == f"{tmp_path}: train/ and test/ hold different classes (only in test/: fish)"
    (tmp_path / "train" / "fish").mkdir()
    assert said() == f"{tmp_path}/train/fish: the class has no images"
    picture(tmp_path / "train" / "fish" / "0.png", 1, size=(9, 9))
    assert said() == (
        f"{tmp_path}/train/fish/0.png: is 9x9 pixels, {tmp_path}/train/cat/0.png "
        "is 6x4; set data.size to resize all images"
    )
    (tmp_path / "train" / "fish" / "0.png").write_text("no image")
    assert said().startswith(f"{tmp_path}/train/fish/0.png: not an image that pillow can read (")
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    assert (
        said()
        == "data source folder needs pillow, which is not installed: pip install 'sparsify-recipes[vision]'"
    )


def test_a_truncated_image_is_named(tmp_path: Path) -> None:
    pictures(tmp_path)
    path = tmp_path / "train" / "cat" / "0.png"
    path.write_bytes(path.read_bytes()[:50])
    assert complaint(source="folder", root=str(tmp_path)).startswith(
        f"{path}: not an image that pillow can read ("
    )


# --- npz


def arrays(**changed: Any) -> dict[str, Any]:
    x = np.arange(10 * 12, dtype=np.uint8).reshape(10, 3, 4)
    return {"x_train": x, "y_train": np.arange(10) % 3, "x_test": x[:4], "y_test": np.arange(4) % 3} | changed


def test_npz_of_gray_pixels_gets_a_channel(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", **arrays())
    data = load(source=str(tmp_path / "d.npz"), validation="20%")
    assert data.train.inputs.shape == (8, 1, 3, 4) and data.train.inputs.dtype == torch.uint8
    assert data.classes == 3 and data.test.targets.tolist() == [0, 1, 2, 0]
    assert len(load(source="d.npz", root=str(tmp_path)).test) == 4


def test_npz_of_real_numbers_is_taken_as_it_is(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(10, 5))
    np.savez(tmp_path / "d.npz", **arrays(x_train=x, x_test=x[:4], y_train=np.zeros((10, 1), np.int32)))
    data = load(source=str(tmp_path / "d.npz"), validation="0%")
    assert data.train.inputs.dtype == torch.float32
    assert torch.equal(data.train.ready(), torch.from_numpy(x).float())


NAN = np.full((10, 5), np.nan)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"y_train": np.arange(9)}, "{}: x_train: 10 inputs and 9 targets"),
        ({"y_test": np.array([0, 1, -1, 0])}, "{}: x_test: target -1 is out of range; classes count from 0"),
        (
            {"y_train": np.zeros(10)},
            "{}: x_train: targets must be whole numbers, one per example; they are 10 float64; for "
            "real numbers write 'task: regression'",
        ),
        (
            {"y_train": np.zeros((10, 3), int)},
            "{}: x_train: targets must be whole numbers, one per example; they are 10x3 int64; "
            "for several labels of an example write 'task: multilabel'",
        ),
        (
            {"x_train": np.zeros(10)},
            (
                "{}: x_train: one example is a single number; expected inputs of "
                "(examples, ...), they are 10 float64"
            ),
        ),
        ({"x_train": NAN, "x_test": NAN[:4]}, "{}: x_train: 50 inputs are NaN or infinite"),
        (
            {"x_train": np.zeros((0, 3, 4), np.uint8), "y_train": np.zeros(0, int)},
            "{}: x_train: has no examples",
        ),
        (
            {"x_test": np.zeros((4, 9, 9), np.uint8)},
            "'{}': training examples are 1x3x4, test examples are 1x9x9",
        ),
        (
            {"x_train": np.zeros((10, 8, 8, 3), np.uint8)},
            (
                "{}: x_train: images of 10x8x8x3 uint8 have their channels last; "
                "transpose them to (examples, channels, height, width)"
            ),
        ),
        (
            {"x_train": np.zeros((10, 8, 8, 4), np.uint8)},
            (
                "{}: x_train: images of 10x8x8x4 uint8 have their channels last; "
                "transpose them to (examples, channels, height, width)"
            ),
        ),
        ({"x_train": np.zeros((10, 2), complex)}, "{}: x_train: inputs are complex numbers"),
        ({"x_train": np.array([["a"]] * 10)}, "{}: x_train: cannot be converted to a tensor"),
        (
            {"y_train": np.array([object()] * 10)},
            "{}: cannot be read as an .npz of plain arrays (Object arrays cannot be loaded",
        ),
    ],
)
def test_npz_faults(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, **arrays(**changed))
    said = complaint(source=str(path))
    assert said.startswith(message.format(path))
    assert said == message.format(path) or said.endswith(")")


def test_npz_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    assert (
        complaint(source=str(path))
        == f"{path}: no such file; expected an .npz with x_train, y_train, x_test, y_test"
    )
    np.savez(path, x=np.zeros(3), x_train=np.zeros(3))
    assert complaint(source=str(path)) == f"{path}: has no y_train, x_test, y_test (it holds x, x_train)"
    np.savez(path, **arrays())
    whole = path.read_bytes()
    for broken in (b"", b"text", whole[:-100], whole[:200]):
        path.write_bytes(broken)
        assert complaint(source=str(path)).startswith(f"{path}: cannot be read as an .npz of plain arrays (")
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    assert complaint(source=str(path)).startswith(f"{path}: cannot be read as an .npz of plain arrays (")


# --- a callable


def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    (tmp_path / f"{name}.py").write_text(
        "import numpy as np, torch\nfrom torch.utils.data import TensorDataset\n" + text
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)


GOOD = """
X, Y = torch.arange(40.0).view(10, 4), torch.arange(10) % 2
def pairs(): return (X, Y), (X[:4].numpy(), Y[:4].tolist())
def sets(): return TensorDataset(X, Y), TensorDataset(X[:4], Y[:4])
class Squares(torch.utils.data.IterableDataset):
    def __iter__(self): return zip(X, range(10))
def iterable(): return Squares(), Squares()
"""


@pytest.mark.parametrize("name", ["pairs", "sets"])
def test_callable_of_a_module_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    write_module(tmp_path, monkeypatch, "good_data", GOOD)
    before = list(sys.path)
    data = load(source=f"good_data:{name}", validation="20%", split="last")
    assert sys.path == before
    assert torch.equal(data.train.inputs, torch.arange(32.0).view(8, 4))
    assert data.test.targets.tolist() == [0, 1, 0, 1] and data.classes == 2


def test_iterable_datasets_are_read_to_their_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_module(tmp_path, monkeypatch, "more_data", GOOD)
    assert load(source="more_data:iterable").classes == 10


BAD = """
def raises(): raise RuntimeError("no disk")
def one(): return 3
def three(): return 1, 2, 3
def strange(): return 1, 2
def words(): return ["a", "b"], ["a", "b"]
def ragged(): return [(torch.zeros(2), 0)], [(torch.zeros(3), 0)]
class Lists(torch.utils.data.Dataset):
    def __len__(self): return 3
    def __getitem__(self, i): return "text", i
def lists(): return Lists(), Lists()
class Uneven(Lists):
    def __getitem__(self, i): return torch.zeros(i + 1), i
def uneven(): return Uneven(), Uneven()
class Floats(Lists):
    def __getitem__(self, i): return torch.zeros(2), 0.7
def floats(): return Floats(), Floats()
class Empty(Lists):
    def __len__(self): return 0
def empty(): return Empty(), Empty()
number = 3
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises", "data.source 'bad_data:raises' failed: RuntimeError: no disk"),
        ("one", "data.source 'bad_data:one' returned a int; expected (train, test)"),
        ("three", "data.source 'bad_data:three' returned a tuple; expected (train, test)"),
        (
            "strange",
            "bad_data:strange: train: expected a pair (inputs, targets) or a torch Dataset, not a int",
        ),
        (
            "words",
            (
                "bad_data:words: train: cannot be converted to a tensor (can't convert "
                "np.ndarray of type numpy.str_."
            ),
        ),
        ("lists", "bad_data:lists: train: an input of the Dataset is a str; expected a tensor or an array"),
        (
            "uneven",
            (
                "bad_data:uneven: train: the examples cannot be stacked (they are 1 float32, 2 float32, "
                "3 float32); pad them, or write task.collate"
            ),
        ),
        (
            "floats",
            "bad_data:floats: train: targets must be whole numbers, one per example; they are 3 float64; "
            "for real "
            "numbers write 'task: regression'",
        ),
        ("empty", "bad_data:empty: train: has no examples"),
        ("number", "data.source 'bad_data:number' is a int, which cannot be called"),
        (
            "stranger",
            "data.source 'bad_data:stranger': module 'bad_data' has no 'stranger'; did you mean 'strange'?",
        ),
    ],
)
def test_callable_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str) -> None:
    write_module(tmp_path, monkeypatch, "bad_data", BAD)
    said = complaint(source=f"bad_data:{name}")
    assert said == message or ("(" in message and said.startswith(message))


def test_callable_of_a_module_that_is_not_there_or_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_module(tmp_path, monkeypatch, "failing_data", "import nowhere_to_be_found\n")
    assert complaint(source="no.such:f") == (
        "data.source 'no.such:f': there is no module 'no' (looked in the "
        f"installed packages and in {tmp_path})"
    )
    assert complaint(source="os:getcwd") == (
        "data.source 'os:getcwd': 'os:getcwd' is in the standard library, which a recipe must not "
        "name; name a callable of your own"
    )
    assert complaint(source="failing_data:f") == (
        "data.source 'failing_data:f': importing 'failing_data' failed: No module named 'nowhere_to_be_found'"
    )


# --- what a recipe says about data


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"source": "digits", "normalize": {"mean": [0.1, 0.2, 0.3], "std": [1.0, 1.0, 1.0]}},
            "data.normalize has 3 means, but the examples of 'digits' are 1x8x8 and need 1; write a "
            "mean and a std for each",
        ),
        (
            {"source": "digits", "validation": "99.99%"},
            "data.validation 99.99% leaves none of the 1438 examples for training",
        ),
    ],
)
def test_faults_of_the_recipe(spec: dict[str, Any], message: str) -> None:
    assert complaint(**spec) == message


def test_augmentation_is_for_images_and_normalisation_for_numbers(tmp_path: Path) -> None:
    x = np.zeros((10, 5))
    path = tmp_path / "d.npz"
    np.savez(path, **arrays(x_train=x, x_test=x[:4]))
    assert complaint(source=str(path), augment={"flip": True}) == (
        f"data.augment changes images (channels, height, width); the examples of '{path}' are 5; leave it out"
    )
    np.savez(path, **arrays(x_train=x.astype(int), x_test=x[:4].astype(int)))
    assert complaint(source=str(path), normalize={"mean": [0.0] * 5, "std": [1.0] * 5}) == (
        f"data.normalize needs pixels or real numbers; the inputs of '{path}' are int64; leave it out"
    )


def test_normalisation_is_exact_per_channel() -> None:
    x = torch.randint(256, (4, 3, 5, 5), dtype=torch.uint8)
    examples = Examples(x, torch.zeros(4, dtype=torch.int64), (0.1, 0.2, 0.3), (0.5, 0.25, 2.0))
    wanted = torch.stack(
        [
            (x[:, c].double() / 255 - m) / s
            for c, (m, s) in enumerate(zip((0.1, 0.2, 0.3), (0.5, 0.25, 2.0), strict=True))
        ],
        1,
    )
    assert torch.allclose(examples.ready().double(), wanted, atol=1e-6)
    assert x.dtype == torch.uint8


@pytest.mark.parametrize("split", ["random", "last"])
@pytest.mark.parametrize("share", ["0%", "10%", "33.3%"])
def test_training_and_validation_part_the_training_set(split: str, share: str) -> None:
    data = load(source="digits", split=split, validation=share)
    whole = load(source="digits", validation="0%").train
    count = round(len(whole) * float(share[:-1]) / 100)
    assert (len(data.train), len(data.validation)) == (len(whole) - count, count)
    together = torch.cat([data.train.inputs, data.validation.inputs]).flatten(1)
    assert sorted(map(tuple, together.tolist())) == sorted(map(tuple, whole.inputs.flatten(1).tolist()))
    if split == "last":
        assert torch.equal(together, whole.inputs.flatten(1))


def test_the_seed_draws_the_validation_set() -> None:
    a, b, c = load(seed=1, source="digits"), load(seed=1, source="digits"), load(seed=2, source="digits")
    assert torch.equal(a.validation.inputs, b.validation.inputs)
    assert not torch.equal(a.validation.inputs, c.validation.inputs)


# --- batches


def numbered(count: int = 23, shape: tuple[int, ...] = (3, 6, 5)) -> Examples:
    x = torch.randint(256, (count, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Examples(x, torch.arange(count))


def gathered(examples: Examples, *args: Any, **more: Any) -> tuple[list[Tensor], Tensor, Tensor]:
    pairs = list(batches(examples, *args, **more))
    return [x for x, _ in pairs], torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])


@pytest.mark.parametrize("seed", [None, 0, 7])
@pytest.mark.parametrize("size", [1, 4, 23, 100])
def test_no_example_is_dropped_or_repeated(size: int, seed: int | None) -> None:
    examples = numbered()
    parts, x, y = gathered(examples, size, seed=seed)
    assert [len(p) for p in parts] == [size] * (23 // size) + [23 % size] * (23 % size > 0)
    assert len(batches(examples, size, seed=seed)) == len(parts)
    assert sorted(y.tolist()) == list(range(23))
    assert (y.tolist() == list(range(23))) == (seed is None)
    assert x.dtype == torch.float32 and torch.equal(x, examples[y].ready())


def test_the_same_seed_gives_the_same_batches_and_no_other_does() -> None:
    change = Augment(flip=True, crop=2)
    first, again = (gathered(numbered(), 4, seed=3, augment=change)[1] for _ in range(2))
    other = gathered(numbered(), 4, seed=4, augment=change)[1]
    loader = batches(numbered(), 4, seed=3, augment=change)
    twice = [torch.cat([x for x, _ in loader]) for _ in range(2)]
    assert torch.equal(first, again) and torch.equal(first, twice[0]) and torch.equal(first, twice[1])
    assert not torch.equal(first, other)


def test_global_random_state_is_neither_read_nor_changed() -> None:
    before = torch.get_rng_state()
    a = gathered(numbered(), 4, seed=3, augment=Augment(flip=True, crop=2))[1]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert torch.equal(a, gathered(numbered(), 4, seed=3, augment=Augment(flip=True, crop=2))[1])
    torch.set_rng_state(before)


def test_every_augmented_image_is_a_shifted_and_perhaps_mirrored_original() -> None:
    examples = numbered(40)
    _, x, y = gathered(examples, 7, seed=5, augment=Augment(flip=True, crop=2))
    padded = torch.nn.functional.pad(examples.ready(), (2, 2, 2, 2))
    seen = set()
    for image, n in zip(x, y.tolist(), strict=True):
        found = [
            (flip, down, right)
            for flip in (False, True)
            for down in range(5)
            for right in range(5)
            if torch.equal(
                image.flip(-1) if flip else image, padded[n, :, down : down + 6, right : right + 5]
            )
        ]
        assert len(found) == 1
        seen.add(found[0])
    assert len(seen) > 20


def test_flip_alone_mirrors_about_half() -> None:
    examples = numbered(200)
    _, x, y = gathered(examples, 32, seed=1, augment=Augment(flip=True))
    original = examples[y].ready()
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(x, original, strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(x, original, strict=True)]
    assert all(m != k for m, k in zip(mirrored, kept, strict=True))
    assert 70 < sum(mirrored) < 130


def test_batches_of_nothing() -> None:
    empty = numbered()[slice(0, 0)]
    assert list(batches(empty, 4)) == [] and list(batches(empty, 4, seed=1)) == []
    assert empty.ready().shape == (0, 3, 6, 5)


def test_accelerate_prepares_the_loader_without_changing_its_batches() -> None:
    from accelerate import Accelerator, DataLoaderConfiguration

    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(split_batches=True))
    prepared = accelerator.prepare(batches(numbered(), 4, seed=3))
    assert torch.equal(torch.cat([y for _, y in prepared]), gathered(numbered(), 4, seed=3)[2])


def test_a_dataset_still_gives_single_examples() -> None:
    x, y = batches(numbered(), 4).dataset[5]
    assert x.shape == (3, 6, 5) and int(y) == 5


# --- example inputs


def recipe(**more: Any) -> Recipe:
    return Recipe.model_validate(
        {"version": 1, "title": "t", "rules": [{"layers": "*", "group": "filter"}], **more}
    )


def test_example_inputs_are_random_as_the_recipe_says() -> None:
    said = recipe(
        inputs=[
            {"shape": [8, 3, 4]},
            {"shape": [8, 2], "dtype": "int64"},
            {"shape": [5, 5], "dtype": "bool"},
            {"shape": [8, 1], "dtype": "float16"},
        ]
    )
    inputs = example_inputs(said, batch=3, seed=1)
    again = example_inputs(said, batch=3, seed=1)
    assert isinstance(inputs, tuple) and isinstance(again, tuple)
    assert [(tuple(x.shape), x.dtype) for x in inputs] == [
        ((3, 3, 4), torch.float32),
        ((3, 2), torch.int64),
        ((5, 5), torch.bool),
        ((3, 1), torch.float16),
    ]
    assert all(torch.equal(a, b) for a, b in zip(inputs, again, strict=True))
    assert set(inputs[1].flatten().tolist()) <= {0, 1}


def test_example_inputs_by_keyword() -> None:
    inputs = example_inputs(
        recipe(inputs={"ids": {"shape": [1, 7], "dtype": "int64"}, "mask": {"shape": [1, 7]}})
    )
    assert isinstance(inputs, dict)
    assert {k: tuple(v.shape) for k, v in inputs.items()} == {"ids": (2, 7), "mask": (2, 7)}


def test_example_inputs_are_real_ones_without_inputs() -> None:
    data = load(source="digits", normalize={"mean": [0.3], "std": [0.4]})
    (x,) = example_inputs(recipe(), data, batch=5)
    assert torch.equal(x, data.train[slice(0, 5)].ready())
    (x,) = example_inputs(
        recipe(), Datasets(data.train[slice(0, 3)], data.validation, data.test, 10), batch=5
    )
    assert x.shape == (5, 1, 8, 8)


def test_example_inputs_faults() -> None:
    with pytest.raises(
        DataError,
        match=r"^the recipe has neither 'inputs' nor 'data'; say what a forward call takes, such as inputs: ",
    ):
        example_inputs(recipe())
    with pytest.raises(DataError) as caught:
        example_inputs(recipe(inputs=[{"shape": [2, 3, 8, 8]}]), load(source="digits"))
    assert str(caught.value) == (
        "an example in 'inputs' is 3x8x8, but in the data 1x8x8; leave 'inputs' "
        "out to take the shape from the data"
    )
    assert example_inputs(recipe(inputs=[{"shape": [2, 1, 16, 16]}]), load(source="digits"))[0].shape == (
        2,
        1,
        16,
        16,
    )  # type: ignore[index]


class Operations(TorchDispatchMode):
    """Counts what torch computes."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation: Any, types: Any, given: Any = (), more: Any = None) -> Any:
        self.count += 1
        return operation(*given, **(more or {}))


def test_an_epoch_takes_a_few_operations_a_batch_and_none_an_example() -> None:
    examples = Examples(
        torch.zeros(60_000, 1, 28, 28, dtype=torch.uint8),
        torch.zeros(60_000, dtype=torch.int64),
        (0.13,),
        (0.31,),
    )
    with Operations() as computed:
        sizes = [len(y) for _, y in batches(examples, 64, seed=0)]
    assert sum(sizes) == 60_000
    assert computed.count < 30 * len(sizes)
