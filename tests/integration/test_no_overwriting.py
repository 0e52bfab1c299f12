"""Nothing of the user's is overwritten: each command refuses an existing file that is not its own kind."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from sparsify import files
from sparsify.errors import RunError
from sparsify.models import digits_cnn
from sparsify_cli.app import exit_code

RECIPE = {
    "version": 1,
    "title": "Small",
    "model": {"build": "sparsify.models.digits_cnn"},
    "data": {"source": "digits", "validation": "10%"},
    "rules": [{"layers": "conv1", "group": "filter"}],
}
PROFILE = ["sensitivity", "recipe.yaml", "m.pt", "--by", "taylor", "--examples", "20", "--quiet"]
MEASURE = ["targets", "measure", "eager"]
COMMANDS = {
    "profile": ([*PROFILE, "--out", "FILE"], "a sensitivity profile", "--out"),
    "plot": ([*PROFILE, "--plot", "FILE"], "a page of sparsify", "--plot"),
    "table": ([*MEASURE, "--out", "FILE"], "a table of latencies", "--out"),
}
TAKEN = {"weights": "m.pt", "recipe": "recipe.yaml", "page": "mine.html", "json": "mine.json"}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPARSIFY_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    torch.save(digits_cnn().state_dict(), "m.pt")
    Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    Path("mine.html").write_text("<!doctype html><title>mine</title>")
    Path("mine.json").write_text('{"version": 1, "mine": true}')
    yield
    torch.set_grad_enabled(True)


def call(arguments: list[str], file: str, *more: str) -> int:
    return exit_code([file if part == "FILE" else part for part in arguments] + list(more))


@pytest.mark.parametrize("taken", TAKEN)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_of_another_kind_is_refused_before_the_work(
    name: str, taken: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, kind, option = COMMANDS[name]
    file = TAKEN[taken]
    before = Path(file).read_bytes()
    assert call(arguments, file) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert Path(file).read_bytes() == before
    end = f"choose another place with {option}, or replace it with --force"
    assert line.endswith(end)
    assert f"is not {kind}" in line or (name == "profile" and "not a sensitivity profile" in line)


@pytest.mark.parametrize("name", ["profile", "plot"])
def test_it_is_replaced_where_that_is_asked_for_and_its_own_kind_in_any_case(name: str) -> None:
    arguments, _, _ = COMMANDS[name]
    assert call(arguments, "mine.html", "--force") == 0
    made = Path("mine.html").read_bytes()
    assert b"mine" not in made[:100]
    assert call(arguments, "mine.html") == 0
    assert Path("mine.html").read_bytes() == made


def test_plot_and_profile_in_one_file_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code([*PROFILE, "--out", "x", "--plot", "./x"]) == 2
    assert "--plot and --out both name x" in capsys.readouterr().err
    assert not Path("x").exists()


def test_another_profile_is_replaced_by_force_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(COMMANDS["profile"][0], "p.json") == 0
    first = Path("p.json").read_bytes()
    other = [*COMMANDS["profile"][0], "--set", "seed=5"]
    capsys.readouterr()
    assert call(other, "p.json") == 1
    assert capsys.readouterr().err == (
        "p.json is a profile made with another model, data, rules or method; "
        "choose another place with --out, or replace it with --force\n"
    )
    assert Path("p.json").read_bytes() == first
    assert call(other, "p.json", "--force") == 0
    assert Path("p.json").read_bytes() != first


KIND = files.Kind("a file of ours", lambda body: body.startswith(b"ours"))


@pytest.mark.parametrize("force", [False, True])
def test_a_device_or_a_pipe_is_never_replaced(force: bool) -> None:
    os.mkfifo("pipe")
    Path("link").symlink_to("/dev/null")
    for name in ("pipe", "link", "/dev/null"):
        with pytest.raises(RunError) as caught:
            files.write_output(Path(name), b"ours", KIND, force=force)
        assert str(caught.value) == f"cannot write {name}: it is a device or a pipe; name a file"
    assert Path("pipe").is_fifo() and Path("/dev/null").is_char_device()


def test_a_link_stays_a_link_and_its_file_is_looked_at() -> None:
    Path("file").write_bytes(b"ours before")
    Path("link").symlink_to("file")
    files.write_output(Path("link"), b"ours after", KIND)
    assert Path("link").is_symlink() and Path("file").read_bytes() == b"ours after"
    Path("file").write_bytes(b"theirs")
    with pytest.raises(RunError, match="link exists already and is not a file of ours"):
        files.write_output(Path("link"), b"ours", KIND)
    Path("dangling").symlink_to("nowhere")
    files.write_output(Path("dangling"), b"ours", KIND)
    assert Path("nowhere").read_bytes() == b"ours"


def test_an_empty_file_may_go_and_a_folder_may_not() -> None:
    Path("empty").touch()
    files.write_output(Path("empty"), b"ours", KIND)
    assert Path("empty").read_bytes() == b"ours"
    Path("folder").mkdir()
    for name, said in {
        "folder": "cannot write folder: it is a folder; name a file in it",
        "not/there": "cannot write not/there: there is no folder not",
    }.items():
        with pytest.raises(RunError) as caught:
            files.write_output(Path(name), b"ours", KIND, force=True)
        assert str(caught.value) == said


def test_no_writer_replaces_a_pipe() -> None:
    os.mkfifo("pipe")
    with (
        pytest.raises(RunError, match="cannot write pipe: it is a device or a pipe"),
        files.replace_file(Path("pipe")),
    ):
        raise AssertionError("nothing is written")
