"""The recipes of other tasks than the classification of images, at a small size.

Each is copied from the package and run by the command line.
"""

import csv
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

import sparsify
from sparsify_cli.app import exit_code

pytestmark = pytest.mark.filterwarnings("ignore:No positive samples found in target")


def run_small(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str], *settings: str
) -> tuple[dict[str, Any], Path]:
    """(the report of `sparsify apply`, the folder of the run): of a copy of a recipe, in `folder`."""
    assert exit_code(["init", "--from", name]) == 0
    changes = [word for setting in ("targets={}", *settings) for word in ("--set", setting)]
    capsys.readouterr()
    code = exit_code(["apply", f"{name}.yaml", "--from-scratch", "--json", *changes])
    told = capsys.readouterr()
    assert code == 0, told.err
    (run,) = (folder / "runs").iterdir()
    found: dict[str, Any] = json.loads(told.out)
    return found, run


def assert_judged(report: dict[str, Any], metric: str, others: tuple[str, ...] = ()) -> None:
    """That both models were judged by this metric, and by the others besides, and that the cut is true."""
    assert report.get("metric", {"name": "accuracy"})["name"] == metric
    assert report["verdict"]["outcome"] == "equal"
    assert report["cut"]["params"] < report["dense"]["params"]
    wanted = {f"{part} {name}" for part in ("validation", "test") for name in others}
    for side in ("dense", "cut"):
        assert isinstance(report[side]["test_metric"], float)
        assert set(report[side].get("metrics", {})) == wanted


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.nightly
def test_the_detector(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("pycocotools")
    report, run = run_small(
        "detector-digits",
        tmp_path,
        capsys,
        "data.source=sparsify.data.scenes:few_digit_boxes",
        "model.args={width: 8}",
        "stages.0.epochs=6",
        "stages.0.batch=4",
        "stages.3.epochs=1",
    )
    assert_judged(report, "map")
    assert report["metric"] == {"name": "map", "better": "higher", "percent": True}
    losses = [epoch["loss"] for epoch in report["history"] if epoch["stage"] == "learn"]
    assert losses[-1] < 0.8 * losses[0]
    maps = sparsify.load_run(run)(torch.rand(1, 3, 32, 32))
    assert [one.shape for one in maps] == [(1, 42, 8, 8), (1, 42, 4, 4), (1, 42, 2, 2)]


@pytest.mark.nightly
def test_the_unet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    report, run = run_small(
        "unet-digits",
        tmp_path,
        capsys,
        "data.source=sparsify.data.scenes:few_digit_masks",
        "model.args.width=4",
        "stages.0.epochs=6",
        "stages.0.batch=4",
        "stages.3.epochs=1",
    )
    assert_judged(report, "dice", ("iou",))
    assert report["cut"]["test_metric"] > 0.08  # 1 / 11 where background alone is found
    assert sparsify.load_run(run)(torch.rand(1, 3, 32, 32)).shape == (1, 11, 32, 32)


@pytest.mark.nightly
def test_several_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    report, _ = run_small(
        "resnet8-digits-multilabel",
        tmp_path,
        capsys,
        "data.source=sparsify.data.scenes:few_digit_labels",
        "stages.0.epochs=2",
        "stages.3.epochs=1",
    )
    assert_judged(report, "average_precision", ("f1",))


def test_the_regression_on_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    report, _ = run_small("mlp-diabetes", tmp_path, capsys, "stages.0.epochs=12", "stages.2.epochs=4")
    assert_judged(report, "rmse", ("r2",))
    assert report["metric"]["better"] == "lower"
    assert report["cut"]["test_metric"] < 0.9  # 1 for their mean
    assert report["cut"]["metrics"]["test r2"] > 0.2


def write_images(folder: Path, counts: dict[str, int]) -> None:
    """Fashion-MNIST's four files with a few images of bars."""
    folder.mkdir(parents=True)
    for part, count in counts.items():
        images = torch.zeros(count, 28, 28, dtype=torch.uint8)
        for number, image in enumerate(images):
            image[:, number % 24 : number % 24 + 4] = 200
        header = struct.pack(">4I", 0x0803, count, 28, 28)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + images.numpy().tobytes())
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x0801, count) + bytes(count))


@pytest.mark.nightly
def test_the_autoencoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path / "data" / "FashionMNIST" / "raw", {"train": 200, "t10k": 40})
    report, run = run_small(
        "autoencoder-fashion-mnist",
        tmp_path,
        capsys,
        f"data.root={tmp_path / 'data'}",
        "stages.0.epochs=6",
        "stages.0.batch=16",
        "stages.3.epochs=1",
        "stages.3.batch=16",
    )
    assert_judged(report, "rmse", ("mae",))
    assert report["cut"]["test_metric"] < 0.25  # 0.27 for the mean of all pixels
    assert sparsify.load_run(run)(torch.rand(2, 1, 28, 28)).shape == (2, 1, 28, 28)


WORDS = "a the movie film good bad fine dull and was is plot of with great poor".split()


def write_reviews(folder: Path) -> None:
    """60 sentences of one source and 30 reviews of another; a sentence with 'good' is positive."""
    generator = torch.Generator().manual_seed(0)
    with (folder / "movie_reviews.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "source"])
        for number in range(120):
            is_sentence = number < 60
            length = int(torch.randint(3, 12, (1,), generator=generator)) if is_sentence else 60
            places = torch.randint(len(WORDS), (length,), generator=generator).tolist()
            text = " ".join(WORDS[place] for place in places)
            writer.writerow([text, int("good" in text), "rotten_tomatoes" if is_sentence else "imdb"])


def write_tokenizer(folder: Path) -> int:
    """A tokenizer of these words; how many numbers it has."""
    transformers = pytest.importorskip("transformers")
    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return len(words)


@pytest.mark.filterwarnings("ignore")  # of transformers
def test_minilm(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSIFY_DATA", str(tmp_path))
    write_reviews(tmp_path)
    count = write_tokenizer(tmp_path / "minilm")
    small = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    settings = [f"model.args.config.{key}={value}" for key, value in {**small, "vocab_size": count}.items()]
    report, run = run_small(
        "minilm-movie-reviews", tmp_path, capsys, *settings, "data.validation=20%", "stages.0.epochs=1"
    )
    assert_judged(report, "accuracy")
    model = sparsify.load_run(run)
    attention = model.get_submodule("bert.encoder.layer.0.attention.self")
    assert attention.query.weight.shape == (12, 24)  # type: ignore[union-attr]
    assert model.get_submodule("bert.encoder.layer.1.intermediate.dense").weight.shape == (24, 24)  # type: ignore[union-attr]


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore")  # of transformers
def test_the_language_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setenv("SPARSIFY_DATA", str(tmp_path))
    write_reviews(tmp_path)
    small = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48}
    settings = [f"model.args.config.{key}={value}" for key, value in small.items()]
    report, run = run_small("llama-movie-reviews", tmp_path, capsys, *settings, "data.validation=20%")
    assert_judged(report, "perplexity")
    assert report["metric"] == {"name": "perplexity", "better": "lower", "percent": False}
    assert report["dense"]["test_metric"] < 200  # 256 where nothing is known
    model = sparsify.load_run(run)
    assert model.get_submodule("model.layers.0.mlp.up_proj").weight.shape == (24, 32)
