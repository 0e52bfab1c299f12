"""Images from files: they keep the values that the files hold, and masks go with them."""

import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sparsify
from sparsify.data import load_data
from sparsify.errors import SparsifyError
from sparsify.runs.apply import apply
from sparsify.runs.save_load import load_dense, verify_run

sys.path.append(str(Path(__file__).parent))
import data_parts

Image = pytest.importorskip("PIL.Image")


@pytest.fixture(autouse=True)
def _own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts lie where a user's own module lies: in the current folder."""
    (tmp_path / "data_parts.py").write_text(Path(data_parts.__file__).read_text())
    monkeypatch.chdir(tmp_path)


def recipe(task: Any = "classification", build: str = "conv_net", **more: Any) -> dict[str, Any]:
    args = {"channels": more.pop("model_channels", 1)}
    return {
        "version": 1,
        "title": "Images",
        "model": {"build": f"data_parts.{build}", "args": args},
        "data": {"source": "folder", "root": "set", **more},
        "task": task,
        "rules": [{"layers": "0", "group": "filter", "sparsity": "50%"}],
        "stages": [
            {
                "kind": "train",
                "name": "learn",
                "epochs": 4,
                "batch": 8,
                "optimizer": {"kind": "adamw", "lr": 0.01},
            },
            {"kind": "cut"},
        ],
    }


def loaded(given: dict[str, Any]) -> Any:
    checked = sparsify.load_recipe(given).recipe
    assert checked.data is not None
    return load_data(checked.data, checked.seed, checked.task)


def complaint(given: dict[str, Any]) -> str:
    with pytest.raises(SparsifyError) as caught:
        apply(given, from_scratch=True, timing=0.02)
    return str(caught.value)


def write(path: str, pixels: Any) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    if path.endswith(".npy"):
        np.save(path, pixels)
    else:
        Image.fromarray(pixels).save(path)


def write_classes(ending: str, dark: Any, bright: Any, count: int = 12) -> None:
    """Two classes of noise, dark and bright."""
    generator = np.random.default_rng(0)
    for part, images in (("train", count), ("test", 4)):
        for name, limits in (("a", dark), ("b", bright)):
            low, high = map(np.asarray, limits)
            for i in range(images):
                pixels = generator.uniform(low, high, size=(8, 8, *low.shape)).astype(DTYPES[ending])
                if ending == "npy":
                    pixels = pixels.transpose(2, 0, 1)
                write(f"set/{part}/{name}/{i}.{ending}", pixels)


DTYPES: dict[str, Any] = {"png": np.uint16, "tif": np.float32, "npy": np.uint16}


def values(path: str) -> torch.Tensor:
    """What a batch holds of the first image."""
    data = loaded(recipe(validation="0%"))
    assert Path(path).is_file()
    return data.train[:1].batch()[0][0]


def run(given: dict[str, Any]) -> Any:
    report = verify_run(apply(given, from_scratch=True, timing=0.02))
    assert report.history[3].loss < 0.9 * report.history[0].loss, "nothing was learned"
    return report


def test_gray_of_16_bits() -> None:
    """Both classes would be white as bytes."""
    write_classes("png", (3000, 20000), (40000, 65535))
    with Image.open("set/train/a/0.png") as image:
        expected = np.array(image).astype(np.float64) / 65535
    assert values("set/train/a/0.png")[0].numpy() == pytest.approx(expected, abs=1e-6)
    assert run(recipe()).dense.test_metric == 1


def test_real_numbers_of_a_tiff() -> None:
    write_classes("tif", (-3.5, -1.0), (0.5, 7.0))
    with Image.open("set/train/a/0.tif") as image:
        assert torch.equal(values("set/train/a/0.tif")[0], torch.from_numpy(np.array(image)))
    assert run(recipe()).dense.test_metric == 1


def test_arrays_of_several_channels() -> None:
    write_classes("npy", ([0] * 5, [30000] * 5), ([9, 0, 9, 30000, 40000], [20000, 9, 99, 65535, 65535]))
    expected = np.load("set/train/a/0.npy").astype(np.float64) / 65535
    assert values("set/train/a/0.npy").numpy() == pytest.approx(expected, abs=1e-6)
    run(recipe(model_channels=5))


def test_the_order_of_bytes_changes_no_value() -> None:
    write_classes("npy", ([0] * 5, [30000] * 5), ([9] * 5, [65535] * 5))
    before = values("set/train/a/0.npy")
    for file in Path("set").rglob("*.npy"):
        np.save(file, np.load(file).astype(">u2"))
    assert torch.equal(values("set/train/a/0.npy"), before) and before.dtype == torch.float32


def test_opacity_is_kept_unless_the_recipe_says_otherwise() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, size=(4, 6, 4)).astype(np.uint8)
    for part in ("train", "test"):
        write(f"set/{part}/a/0.png", pixels)
        write(f"set/{part}/b/0.png", pixels[:, :, :3])
    found = loaded(recipe(validation="0%")).train.inputs
    assert torch.equal(found[0], torch.from_numpy(pixels).permute(2, 0, 1))
    assert torch.equal(found[1, :3], found[0, :3]) and bool((found[1, 3] == 255).all())
    colours = loaded(recipe(validation="0%", channels=3)).train.inputs
    assert torch.equal(colours, found[:, :3])
    assert loaded(recipe(validation="0%", channels=1)).train.inputs.shape == (2, 1, 4, 6)


def test_bytes_beside_16_bits_have_one_scale() -> None:
    for part in ("train", "test"):
        write(f"set/{part}/a/0.png", np.full((2, 2), 255, np.uint8))
        write(f"set/{part}/b/0.png", np.full((2, 2), 65535, np.uint16))
    x = loaded(recipe(validation="0%")).train[:].batch()[0]
    assert x.tolist() == torch.ones(2, 1, 2, 2).tolist()


def test_images_are_resized_with_all_bits() -> None:
    ramp = np.linspace(0, 65535, 16).astype(np.uint16).reshape(1, 16).repeat(16, axis=0)
    for part in ("train", "test"):
        write(f"set/{part}/a/0.png", ramp)
        write(f"set/{part}/b/0.npy", np.stack([ramp]))
    x = loaded(recipe(validation="0%", size=8)).train[:].batch()[0]
    assert x.shape == (2, 1, 8, 8)
    assert torch.allclose(x[0], x[1])
    middle = (ramp[0, ::2].astype(float) + ramp[0, 1::2]) / 2 / 65535
    assert x[0, 0, 0, 1:-1].tolist() == pytest.approx(middle[1:-1].tolist(), abs=2e-3)
    assert len(set(x[0, 0, 0].tolist())) == 8


def write_png_of_16_bits(path: str, pixels: Any) -> None:
    """A PNG with 16 bits for each of three colours, which pillow cannot write."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    Path(path).write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def test_what_cannot_be_kept_is_refused() -> None:
    gray = np.zeros((4, 4), np.uint8)
    for part in ("train", "test"):
        write(f"set/{part}/a/0.png", gray)
        write(f"set/{part}/b/0.png", gray)
    given = recipe()
    extra = Path("set/train/b/1.png")
    write_png_of_16_bits(str(extra), np.zeros((4, 4, 3), np.uint16))
    assert complaint(given) == (
        "set/train/b/1.png: has 16 bits in each of several channels, of which pillow keeps 8; save it as a "
        ".npy "
        "of uint16 (channels, height, width)"
    )
    extra.unlink()
    tiff = Path("set/train/b/1.tif")
    Image.fromarray(gray).save(tiff, save_all=True, append_images=[Image.fromarray(gray)] * 2)
    assert complaint(given) == (
        "set/train/b/1.tif: holds 3 pages, of which pillow reads one; save it as a .npy of (channels, "
        "height, "
        "width)"
    )
    write(str(tiff), np.zeros((4, 4), np.float32))
    assert complaint(given) == (
        "set/train/b/1.tif: holds values without a known range, and set/train/a/0.png has 8 bits; save all "
        "images in one form"
    )
    tiff.unlink()
    array = "set/train/b/1.npy"
    write(array, np.zeros((3, 4, 4), np.uint8))
    assert complaint(given) == "set/train/b/1.npy: has 3 channels, and set/train/a/0.png has 1"
    assert complaint(recipe(channels=3)) == "set/train/a/0.png: has 1 channels, and data.channels says 3"
    write(array, np.zeros(4, np.uint8))
    assert complaint(given) == (
        "set/train/b/1.npy: holds 4 uint8; expected (height, width) or (channels, height, width)"
    )
    Path(array).unlink()
    for part in ("train", "test"):
        for name in "ab":
            Path(f"set/{part}/{name}/0.png").unlink()
            write(f"set/{part}/{name}/0.npy", np.full((4, 4), np.nan, np.float32))
    assert complaint(given) == "set/train/a/0.npy: 16 values are NaN or infinite"
    with pytest.raises(SparsifyError) as caught:
        sparsify.load_recipe(recipe() | {"data": {"source": "digits", "channels": 1}})
    assert (
        str(caught.value) == "<recipe>: data.channels: 'channels' acts on source 'folder' only; leave it out"
    )


def test_arrays_with_channels_last_are_refused() -> None:
    for part in ("train", "test"):
        for name in "ab":
            write(f"set/{part}/{name}/0.npy", np.zeros((8, 9, 3), np.uint16))
    assert complaint(recipe()) == (
        "set/train/a/0.npy: has its channels last (8x9x3); transpose it to (channels, height, width)"
    )


def test_16_bits_of_an_npz_and_of_a_dataset() -> None:
    pixels = np.random.default_rng(0).integers(0, 65535, size=(20, 2, 4, 4)).astype(np.uint16)
    targets = np.arange(20) % 2
    np.savez("a.npz", x_train=pixels, y_train=targets, x_test=pixels[:5, 0], y_test=targets[:5])
    message = "'a.npz': training examples are 2x4x4, test examples are 1x4x4"
    assert complaint({**recipe(), "data": {"source": "a.npz"}}) == message
    np.savez("a.npz", x_train=pixels, y_train=targets, x_test=pixels[:5], y_test=targets[:5])
    Path("deep_parts.py").write_text(
        "import numpy as np, torch\n"
        "class Items(torch.utils.data.Dataset):\n"
        "    def __init__(self, count): self.x = np.load('a.npz')['x_train'][:count]\n"
        "    def __len__(self): return len(self.x)\n"
        "    def __getitem__(self, i):\n"
        "        if i >= len(self): raise IndexError\n"
        "        return self.x[i], i % 2\n"
        "def items(): return Items(20), Items(5)\n"
    )
    expected = torch.from_numpy(pixels[:5].astype(np.float32) / 65535)
    for source in ("a.npz", "deep_parts:items"):
        given = {**recipe(), "data": {"source": source}}
        assert torch.allclose(loaded(given).test.inputs, expected, atol=1e-6, rtol=0)
        apply({**given, "model": {**given["model"], "args": {"channels": 2}}}, from_scratch=True, timing=0.02)


# --- masks


def write_masked(sizes: dict[str, list[tuple[int, int]]]) -> None:
    """Bright squares on noise, in images of the given sizes, and masks of the squares."""
    generator = np.random.default_rng(0)
    for part, found in sizes.items():
        for i, (height, width) in enumerate(found):
            pixels = generator.integers(0, 60, size=(height, width)).astype(np.uint8)
            mask = np.zeros((height, width), np.uint8)
            top, left = generator.integers(0, height - 4), generator.integers(0, width - 4)
            pixels[top : top + 4, left : left + 4] += 150
            mask[top : top + 4, left : left + 4] = 1
            write(f"set/{part}/images/{i:02}.png", pixels)
            write(f"set/{part}/masks/{i:02}.png", mask)


def dice_of(model: torch.nn.Module, part: str, count: int) -> float:
    """Mean over both classes of 2 TP / (2 TP + FP + FN), over all pixels, one image at a time."""
    hits, sizes = torch.zeros(2), torch.zeros(2)
    for i in range(count):
        with Image.open(f"set/{part}/images/{i:02}.png") as image:
            x = torch.from_numpy(np.array(image))[None, None] / 255
        with Image.open(f"set/{part}/masks/{i:02}.png") as mask:
            y = torch.from_numpy(np.array(mask))
        with torch.no_grad():
            found = model(x)[0].argmax(dim=0)
        for c in (0, 1):
            hits[c] += ((found == c) & (y == c)).sum()
            sizes[c] += (found == c).sum() + (y == c).sum()
    return float((2 * hits / sizes).mean())


@pytest.mark.parametrize("vary", [False, True])
def test_images_with_masks(vary: bool) -> None:
    """Of one size, or of different ones, which are padded: what is padded counts for nothing."""
    sizes = {
        "train": [(8 + i % 3 * vary, 8 + i % 2 * vary) for i in range(24)],
        "test": [(8 + i % 2 * vary, 8) for i in range(6)],
    }
    write_masked(sizes)
    given = recipe("segmentation", "mask_net", validation="0%")
    report = run(given)
    model = load_dense(Path("runs/images-1")).eval()
    assert report.dense.test_metric == pytest.approx(dice_of(model, "test", 6), rel=1e-4)
    x, y = loaded(given).train[:6].batch()
    assert x.shape == (6, 1, 8 + 2 * vary, 8 + vary) and y.shape == (6, 8 + 2 * vary, 8 + vary)
    assert int((y == -100).sum()) == (
        0 if not vary else 6 * 10 * 9 - sum(h * w for h, w in sizes["train"][:6])
    )
    normalized = loaded(recipe("segmentation", validation="0%", normalize={"mean": [0.5], "std": [0.25]}))
    z, _ = normalized.train[:6].batch()
    inside = y != -100
    assert torch.allclose(z[:, 0][inside], (x[:, 0][inside] - 0.5) / 0.25)
    assert bool((z[:, 0][~inside] == 0).all())


def test_images_and_masks_are_resized() -> None:
    write_masked({"train": [(8, 8)] * 4, "test": [(8, 12)] * 2})
    data = loaded(recipe("segmentation", validation="0%", size=4))
    assert data.test.inputs.shape == (2, 1, 4, 4) and data.test.targets.shape == (2, 4, 4)
    assert set(data.train.targets.flatten().tolist()) == {0, 1}
    with Image.open("set/train/masks/00.png") as mask:
        assert torch.equal(data.train.targets[0], torch.from_numpy(np.array(mask))[1::2, 1::2].long())


def test_classes_of_a_palette_and_of_arrays() -> None:
    write_masked({"train": [(8, 8)] * 2, "test": [(8, 8)]})
    places = np.arange(64, dtype=np.uint8).reshape(8, 8) % 3
    image = Image.new("P", (8, 8))
    image.putdata(places.flatten().tolist())
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.save("set/train/masks/00.png")
    Path("set/train/masks/01.png").unlink()
    write("set/train/masks/01.npy", places.astype(np.int32))
    targets = loaded(recipe("segmentation", validation="0%")).train.targets
    assert torch.equal(targets[0], torch.from_numpy(places).long()) and torch.equal(targets[1], targets[0])


def test_faults_of_masks() -> None:
    given = recipe("segmentation", "mask_net")
    assert complaint(given) == (
        "data source folder: set/train has no images/ and masks/; a segmentation needs train/images/, "
        "train/masks/, test/images/ and test/masks/ under data.root"
    )
    write_masked({"train": [(8, 8)] * 2, "test": [(8, 8)]})
    write("set/train/masks/01.png", np.zeros((8, 8, 3), np.uint8))
    assert complaint(given) == (
        "set/train/masks/01.png: a mask holds the number of a class in each pixel; it has the colours of "
        "mode RGB"
    )
    write("set/train/masks/01.png", np.zeros((8, 9), np.uint8))
    assert complaint(given) == (
        "set/train/masks/01.png: the mask is 9x8 pixels, and set/train/images/01.png is 8x8"
    )
    Path("set/train/masks/01.png").unlink()
    assert complaint(given) == (
        "set/train/images/01.png: has no mask; expected set/train/masks/01 with any ending"
    )
    write("set/train/masks/01.png", np.zeros((8, 8), np.uint8))
    write("set/train/masks/02.png", np.zeros((8, 8), np.uint8))
    assert complaint(given) == "set/train/masks/02.png: is a mask without an image in set/train/images"
    np.save("set/train/masks/01.npy", np.zeros((8, 8), np.uint8))
    assert complaint(given) == (
        "set/train/masks/01.png: is a second mask beside 01.npy; leave one of them out"
    )
