import io
import os
import pickle
import random
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sparsify.errors import ModelError
from sparsify.modelfile import build_model, read_model, weights_digest
from sparsify.modelfile.formats import read_contents
from sparsify.modelfile.match_state_dict import load_state
from sparsify.modelfile.weights import save_weights
from sparsify.models import lenet5
from sparsify.nn.load_tensors import load_tensors
from sparsify_schemas.model import Model
from sparsify_schemas.recipe import Recipe

WAYS_OUT = (
    "what to do:\n"
    "  save only the weights where the model can be loaded: torch.save(model.state_dict(), 'weights.pt'),\n"
    "  and name the model's builder under 'model:' in the recipe"
)


def recipe(build: str | None = "sparsify.models.lenet5", seed: int = 0, **args: Any) -> Recipe:
    model = None if build is None else {"build": build, "args": args}
    return Recipe.model_validate(
        {
            "version": 1,
            "title": "t",
            "seed": seed,
            "model": model,
            "rules": [{"layers": "*", "group": "filter"}],
        }
    )


def complaint(path: Path | None, made: Recipe | None = None, allow: tuple[str, ...] = ()) -> str:
    with pytest.raises(ModelError) as caught:
        read_model(path, made or recipe(), allow=allow)
    return str(caught.value)


def same(a: nn.Module, b: nn.Module) -> bool:
    return weights_digest(a) == weights_digest(b)


@pytest.fixture
def dense() -> nn.Module:
    torch.manual_seed(3)
    return lenet5()


# --- building


def test_without_a_file_the_model_has_random_weights_from_the_seed() -> None:
    before = torch.get_rng_state()
    a, b, c = (read_model(None, recipe(seed=s)) for s in (1, 1, 2))
    assert same(a, b) and not same(a, c)
    assert torch.equal(torch.get_rng_state(), before)
    assert not a.training and all(p.requires_grad for p in a.parameters())
    torch.manual_seed(1)
    assert same(a, lenet5())


def test_neither_file_nor_builder() -> None:
    assert (
        complaint(None, recipe(None))
        == "there is no model: give a model file, or name a builder under 'model:' in the recipe"
    )


NETS = """
import torch
from os import system
from subprocess import Popen
from torch import nn
from torch.nn.functional import relu

def swish(x): return x * torch.sigmoid(x)

class Config:
    def __init__(self, width=3): self.width = width

class Net(nn.Module):
    def __init__(self, width=3):
        super().__init__()
        self.config = Config(width)
        self.fc = nn.Linear(4, width)
    def forward(self, x): return self.fc(x)

class Activated(nn.Module):
    def __init__(self):
        super().__init__()
        self.act, self.fc = swish, nn.Linear(4, 3)

class Failing(nn.Module):
    def __init__(self): raise RuntimeError("no room")

def number(): return 3
instance = Net()
constant = 3
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A user's module, in the current folder only."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mynets").mkdir()
    (tmp_path / "mynets" / "__init__.py").touch()
    (tmp_path / "mynets" / "small.py").write_text(NETS)
    (tmp_path / "other_nets.py").write_text(NETS)
    for name in ("mynets", "mynets.small", "other_nets"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    import mynets.small as module  # type: ignore[import-not-found]

    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    yield module
    for name in ("mynets", "mynets.small", "other_nets"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("path", ["mynets.small.Net", "mynets.small:Net"])
def test_a_class_in_the_current_folder_builds_too(nets: Any, path: str) -> None:
    model = build_model(Model(build=path, args={"width": 7}))
    assert isinstance(model, nn.Module) and [p.shape for p in model.parameters()] == [(7, 4), (7,)]


@pytest.mark.parametrize(
    ("build", "args", "message"),
    [
        (
            "sparsify.models.lenet6",
            {},
            (
                "model.build 'sparsify.models.lenet6': module 'sparsify.models' has no 'lenet6'; "
                "did you mean 'lenet5'?"
            ),
        ),
        (
            "nowhere.nets.f",
            {},
            (
                "model.build 'nowhere.nets.f': there is no module 'nowhere' (looked in the installed "
                "packages and in {cwd})"
            ),
        ),
        (
            "mynets.nothing.f",
            {},
            (
                "model.build 'mynets.nothing.f': there is no module 'mynets.nothing' (looked in the "
                "installed packages and in {cwd})"
            ),
        ),
        (
            "mynets.small.Failing",
            {},
            "model.build 'mynets.small.Failing' failed with no arguments: RuntimeError: no room",
        ),
        (
            "mynets.small.number",
            {},
            "model.build 'mynets.small.number' returned a int; expected a torch.nn.Module",
        ),
        (
            "mynets.small.instance",
            {},
            (
                "model.build 'mynets.small.instance' is a Net, which cannot build a model; "
                "name a function or a class"
            ),
        ),
        (
            "mynets.small.constant",
            {},
            (
                "model.build 'mynets.small.constant' is a int, which cannot build a model; "
                "name a function or a class"
            ),
        ),
        (
            "os.system",
            {"command": "ls"},
            "model.build 'os.system': 'os.system' is in the standard library, "
            "which a recipe must not name; name a callable of your own",
        ),
        (
            "sparsify.runs.run_folder.suppress",
            {},
            (
                "model.build 'sparsify.runs.run_folder.suppress': 'sparsify.runs.run_folder.suppress' "
                "is contextlib.suppress of the standard library, which a recipe must not "
                "name; name a callable of your own"
            ),
        ),
        (
            "sparsify.models.lenet5",
            {"clases": 3},
            (
                "model.build 'sparsify.models.lenet5' failed with clases=3: TypeError: "
                "lenet5() got an unexpected keyword argument 'clases'"
            ),
        ),
        (
            "sparsify.models.cifar_resnet",
            {"depth": 21},
            (
                "model.build 'sparsify.models.cifar_resnet' failed with depth=21: ValueError: "
                "depth is 6n + 2, such as 20, 32, 44, 56 or 110, not 21"
            ),
        ),
    ],
)
def test_builders_that_do_not_build(nets: Any, build: str, args: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as caught:
        build_model(Model(build=build, args=args))
    assert str(caught.value) == message.format(cwd=Path.cwd())


# --- weights


def zipped(model: nn.Module, path: Path) -> None:
    torch.save(model.state_dict(), path)


def legacy(model: nn.Module, path: Path) -> None:
    torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False)


def safe(model: nn.Module, path: Path) -> None:
    save_file(model.state_dict(), path)


def without_checksums(model: nn.Module, path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    torch.save(model.state_dict(), path)
    torch.serialization.set_crc32_options(True)


def wrapped(key: str, prefix: str = "") -> Callable[[nn.Module, Path], None]:
    def write(model: nn.Module, path: Path) -> None:
        torch.save(
            {
                "epoch": 3,
                key: {prefix + k: v for k, v in model.state_dict().items()},
                "optimizer": {"state": {}},
            },
            path,
        )

    return write


def double(model: nn.Module, path: Path) -> None:
    torch.save({k: v.double() for k, v in model.state_dict().items()}, path)


@pytest.mark.parametrize(
    "write",
    [
        zipped,
        legacy,
        safe,
        without_checksums,
        double,
        wrapped("state_dict"),
        wrapped("model_state_dict"),
        wrapped("model"),
        wrapped("net"),
        wrapped("state_dict", "module."),
        wrapped("state_dict", "model."),
        wrapped("model", "module._orig_mod."),
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".bin"])
def test_weights_load_from_every_usual_form_whatever_the_file_is_called(
    tmp_path: Path, dense: nn.Module, write: Callable[[nn.Module, Path], None], suffix: str
) -> None:
    path = tmp_path / f"w{suffix}"
    write(dense, path)
    model = read_model(path, recipe())
    assert same(model, dense)
    assert not model.training and all(p.requires_grad for p in model.parameters())


def test_old_batchnorm_weights_without_counters_and_tied_weights_stored_once(
    tmp_path: Path, nets: Any
) -> None:
    from sparsify.models import digits_cnn

    model = digits_cnn()
    torch.save({k: v for k, v in model.state_dict().items() if "num_batches" not in k}, tmp_path / "w.pt")
    assert same(read_model(tmp_path / "w.pt", recipe("sparsify.models.digits_cnn")), model)

    (tmp_path / "tied_nets.py").write_text(
        "from torch import nn\n"
        "class Tied(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)\n"
        "        self.b.weight = self.a.weight\n"
    )
    save_file({"a.weight": torch.ones(4, 4), "a.bias": torch.zeros(4)}, tmp_path / "t.safetensors")
    tied = read_model(tmp_path / "t.safetensors", recipe("tied_nets.Tied"))
    assert torch.equal(tied.state_dict()["b.weight"], torch.ones(4, 4))
    save_file({"b.weight": torch.ones(4, 4)}, tmp_path / "t.safetensors")
    assert "1 missing (a.bias)" in complaint(tmp_path / "t.safetensors", recipe("tied_nets.Tied"))


def test_weights_need_a_builder(tmp_path: Path, dense: nn.Module) -> None:
    zipped(dense, tmp_path / "w.pt")
    assert complaint(tmp_path / "w.pt", recipe(None)) == (
        f"{tmp_path}/w.pt holds weights only; name its builder under 'model:' in the recipe, "
        "such as model: {build: sparsify.models.lenet5}"
    )


HINT = "\nhint: does 'model:' in the recipe build the model that the file was saved from? check its 'args'"


def changed(**tensors: Tensor | None) -> dict[str, Tensor]:
    state = lenet5().state_dict() | {k.replace("__", "."): v for k, v in tensors.items() if v is not None}
    return {
        k: v
        for k, v in state.items()
        if not (k.replace(".", "__") in tensors and tensors[k.replace(".", "__")] is None)
    }


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (changed(fc1__bias=None), "1 missing (fc1.bias)"),
        (changed(extra=torch.zeros(1)), "1 unexpected (extra)"),
        (
            changed(fc2__weight=torch.zeros(7, 500), fc2__bias=torch.zeros(7)),
            (
                "2 of another shape (fc2.weight: 7x500 in the file, 10x500 in the model, fc2.bias: "
                "7 in the file, 10 in the model)"
            ),
        ),
        (
            changed(fc2__bias=torch.zeros(10, dtype=torch.int64)),
            "1 of another type (fc2.bias: int64 in the file, float32 in the model)",
        ),
        (
            changed(fc2__bias=torch.zeros(10).to_sparse()),
            "1 of another type (fc2.bias: float32 sparse in the file, float32 in the model)",
        ),
        (
            changed(fc2__bias=torch.zeros(10, device="meta")),
            "1 of another type (fc2.bias: float32 without data in the file, float32 in the model)",
        ),
        (
            {f"layer{i}": torch.zeros(1) for i in range(12)},
            "8 missing (conv1.weight, conv1.bias, conv2.weight, conv2.bias, fc1.weight and 3 more); "
            "12 unexpected (layer0, layer1, layer2, layer3, layer4 and 7 more)",
        ),
    ],
)
def test_weights_of_another_architecture(tmp_path: Path, state: dict[str, Tensor], said: str) -> None:
    path = tmp_path / "w.pt"
    torch.save(state, path)
    assert complaint(path) == f"{path} does not fit sparsify.models.lenet5: {said}{HINT}"


def test_at_most_five_shapes_are_listed(tmp_path: Path) -> None:
    torch.save({k: torch.zeros(3) for k in lenet5().state_dict()}, tmp_path / "w.pt")
    said = complaint(tmp_path / "w.pt")
    assert "8 of another shape (" in said and said.count("in the file") == 5 and "and 3 more" in said


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("write", [zipped, safe, lambda m, p: torch.save(m, p)])
def test_weights_that_are_not_finite(
    tmp_path: Path, dense: nn.Module, value: float, write: Callable[[nn.Module, Path], None]
) -> None:
    dense.get_parameter("fc2.bias").data[3] = value
    write(dense, tmp_path / "w.pt")
    assert complaint(tmp_path / "w.pt") == (
        f"{tmp_path}/w.pt: NaN or infinite weights in fc2.bias; the training that made them failed"
    )


def test_a_cut_model_of_a_run_points_to_its_folder(tmp_path: Path) -> None:
    save_file(changed(fc2__bias=torch.zeros(7)), tmp_path / "model.safetensors")
    (tmp_path / "cuts.json").touch()
    assert complaint(tmp_path / "model.safetensors").endswith(
        f"; it is the cut model of a run, which loads with its folder: {tmp_path}"
    )


# --- files that are none


def test_no_file_folder_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty.pt").touch()
    assert complaint(tmp_path / "none.pt") == f"{tmp_path}/none.pt: no such file"
    assert complaint(tmp_path) == (
        f"{tmp_path} is a folder with neither a finished run nor model.safetensors; "
        "give the model file in it (.pt or .safetensors)"
    )
    assert complaint(tmp_path / "empty.pt") == f"{tmp_path}/empty.pt is empty"


def test_a_small_file_that_claims_to_be_terabytes(tmp_path: Path) -> None:
    """One stored number, repeated without end: whatever copied it would exhaust the memory."""
    path = tmp_path / "m.pt"
    module = nn.Linear(1, 1)
    module.weight = nn.Parameter(torch.zeros(1).expand(10**12, 1))
    for thing in ({"fc1.weight": torch.zeros(1).expand(10**12)}, module):
        torch.save(thing, path)
        assert complaint(path) == (
            f"{path}: its tensors would take {4 * 10**12 + 4 * isinstance(thing, nn.Module):,} "
            "bytes, many times more than the file has"
        )


def written(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return complaint(path)


def test_files_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    assert (
        written(path, b"conv1: [0.1, 0.2]\n")
        == f"{path}: not a model file; expected what torch.save or safetensors writes"
    )
    for seed in range(20):
        assert written(path, random.Random(seed).randbytes(4096)).startswith(f"{path}: ")
    for content in (
        b"\x80",
        b"\x80\x02",
        b"PK\x03\x04",
        b"PK",
        b"{",
        b"\0" * 8,
        b"\0" * 8 + b"{",
        b"\x02" + b"\0" * 7 + b"{}",
    ):
        assert written(path, content).startswith(f"{path}")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as z:
        z.writestr("readme.txt", "hello")
    assert written(path, archive.getvalue()) == f"{path}: a zip archive, but not one that torch.save wrote"
    assert written(path, pickle.dumps({"a": 1})).startswith(
        f"{path}: a plain pickle, which would execute code when it is read; save"
    )


@pytest.mark.parametrize(
    ("thing", "said"),
    [
        (torch.zeros(3), " holds a Tensor, neither weights nor a model"),
        ([1, 2], " holds a list, neither weights nor a model"),
        ({}, " holds no tensors"),
        (
            {"epoch": 3, "weights": {"a": torch.zeros(1)}},
            (
                ": is not a state dict and holds none under state_dict, model_state_dict, "
                "model, net; its keys are epoch, weights"
            ),
        ),
    ],
)
def test_files_that_hold_something_else(tmp_path: Path, thing: Any, said: str) -> None:
    torch.save(thing, tmp_path / "m.pt")
    assert complaint(tmp_path / "m.pt") == f"{tmp_path}/m.pt{said}"


def test_torchscript_is_named(tmp_path: Path) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as z:
        for name in ("m/data.pkl", "m/constants.pkl", "m/code/__torch__.py"):
            z.writestr(name, "x")
    assert written(tmp_path / "m.pt", archive.getvalue()).startswith(
        f"{tmp_path}/m.pt: a TorchScript archive, which cannot be cut; "
    )


@pytest.mark.parametrize(
    "write",
    [zipped, legacy, safe, lambda m, p: torch.save(m, p)],
    ids=["zip", "legacy", "safetensors", "module"],
)
def test_cut_short_at_any_place(tmp_path: Path, write: Callable[[nn.Module, Path], None]) -> None:
    path = tmp_path / "w.pt"
    write(nn.Sequential(nn.Linear(4, 3)), path)
    whole = path.read_bytes()
    for length in [*range(1, 40), *range(40, len(whole) - 1, max(1, len(whole) // 60))]:
        assert written(path, whole[:length]).startswith(f"{path}")


@pytest.mark.parametrize(
    "write",
    [zipped, legacy, safe, lambda m, p: torch.save(m, p)],
    ids=["zip", "legacy", "safetensors", "module"],
)
def test_flipped_bits_never_give_anything_but_a_model_or_a_complaint(
    tmp_path: Path, nets: Any, write: Callable[[nn.Module, Path], None]
) -> None:
    path = tmp_path / "w.pt"
    net = nets.Net()
    del net.config
    write(net, path)
    whole = path.read_bytes()
    chance = random.Random(0)
    for _ in range(150):
        broken = bytearray(whole)
        broken[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        path.write_bytes(broken)
        try:
            assert isinstance(read_model(path, recipe("mynets.small.Net"), allow=["mynets"]), nn.Module)
        except ModelError as error:
            assert str(path) in str(error)


def test_flipped_bits_of_tensors_in_an_archive_are_noticed(tmp_path: Path, dense: nn.Module) -> None:
    path = tmp_path / "w.pt"
    zipped(dense, path)
    broken = bytearray(path.read_bytes())
    at = broken.index(dense.get_parameter("fc2.bias").detach().numpy().tobytes())
    broken[at] ^= 1
    assert re.fullmatch(
        rf"{path}: damaged or cut short \(Bad CRC-32 for file 'w/data/\d+'\); copy or save it again",
        written(path, bytes(broken)),
    )


def test_safetensors_with_a_garbage_header(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    for header in (
        b"{",
        b"{}",
        b'{"a": 1}',
        b'{"a": {"dtype": "F32", "shape": [1000000], "data_offsets": [0, 4]}}',
        b"\xff\xfe{",
        b"[]",
    ):
        assert written(path, len(header).to_bytes(8, "little") + header).startswith(f"{path}")
    assert written(path, b"\xff" * 64).startswith(f"{path}: damaged or cut short, or not safetensors (")


# --- pickled modules


def test_a_pickled_module_of_torch_layers_needs_nothing(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))
    for thing in (model, {"epoch": 3, "model": model}):
        torch.save(thing, tmp_path / "m.pt")
        found = read_model(tmp_path / "m.pt", recipe(None))
        assert isinstance(found, nn.Sequential) and same(found, model)
        assert not found.training and all(p.requires_grad for p in found.parameters())
        x = torch.randn(2, 1, 3, 3)
        assert torch.equal(found(x), model.eval()(x))


def test_a_pickled_module_of_our_own_needs_nothing(tmp_path: Path, dense: nn.Module) -> None:
    torch.save(dense, tmp_path / "m.pt")
    assert same(read_model(tmp_path / "m.pt", recipe(None)), dense)


def test_a_users_class_is_refused_with_the_flag_and_admitted_with_it(tmp_path: Path, nets: Any) -> None:
    path = tmp_path / "m.pt"
    torch.save(nets.Net(), path)
    sys.modules.pop("mynets.small")
    assert complaint(path, recipe(None)) == (
        f"{path} names classes or functions that are not admitted; nothing in the file was run:\n"
        "  mynets.small.Config  not admitted; needs --allow mynets.small\n"
        "  mynets.small.Net     not admitted; needs --allow mynets.small\n"
        f"{WAYS_OUT}\n"
        "  or, if you trust these packages: --allow mynets.small"
    )
    assert "mynets.small" not in sys.modules
    for allow in ("mynets", "mynets.small", "mynets.small.Net"):
        if allow.endswith("Net"):
            assert "mynets.small.Config  not admitted" in complaint(path, recipe(None), (allow,))
        else:
            assert type(read_model(path, recipe(None), allow=[allow])).__name__ == "Net"
    assert "mynets.small.Net     not admitted" in complaint(path, recipe(None), ("mynet", "mynets.smal"))


def test_functions_are_admitted_by_their_full_name_only(tmp_path: Path, nets: Any) -> None:
    path = tmp_path / "m.pt"
    torch.save(nets.Activated(), path)
    assert (
        "mynets.small.swish  a function, admitted by its full name only; needs --allow mynets.small.swish"
        in complaint(path, recipe(None), ("mynets",))
    )
    assert read_model(path, recipe(None), allow=["mynets", "mynets.small.swish"]).act is nets.swish

    torch.save(nn.TransformerEncoderLayer(8, 2, 8), path)
    assert complaint(path, recipe(None)) == (
        f"{path} names classes or functions that are not admitted; nothing in the file was run:\n"
        "  torch.nn.functional.relu  a function, admitted by its full name only; "
        "needs --allow torch.nn.functional.relu\n"
        f"{WAYS_OUT}\n"
        "  or, if you trust these packages: --allow torch.nn.functional.relu"
    )
    for allow in ("torch.nn.functional.relu", "torch.nn.functional"):
        assert isinstance(read_model(path, recipe(None), allow=[allow]), nn.TransformerEncoderLayer)


def test_a_class_of_a_script_that_is_gone(tmp_path: Path, nets: Any) -> None:
    torch.save(nets.Net(), tmp_path / "m.pt")
    (tmp_path / "mynets" / "small.py").write_text("")
    sys.modules.pop("mynets.small")
    assert (
        "mynets.small.Net     there is no such class; it was defined elsewhere when the file was written"
        in complaint(tmp_path / "m.pt", recipe(None), ("mynets",))
    )
    (tmp_path / "mynets" / "small.py").unlink()
    sys.modules.pop("mynets.small", None)
    assert "mynets.small.Net     there is no module 'mynets.small' (looked in" in complaint(
        tmp_path / "m.pt", recipe(None), ("mynets",)
    )


def test_data_parallel_is_taken_off(tmp_path: Path) -> None:
    torch.save(nn.DataParallel(nn.Linear(4, 2)), tmp_path / "m.pt")
    assert isinstance(read_model(tmp_path / "m.pt", recipe(None)), nn.Linear)


def test_pickled_modules_of_the_old_format_and_of_another_protocol(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save(nn.Linear(4, 2), path, _use_new_zipfile_serialization=False)
    assert complaint(path, recipe(None)) == (
        f"{path}: damaged, or a pickled model that cannot be read without executing code (it names "
        "torch.nn.modules.linear.Linear); "
        "save the weights: torch.save(model.state_dict(), 'weights.pt') where the model can be loaded, "
        "and name its builder under 'model:' in the recipe"
    )
    torch.save(Reduced(os.system, "true"), path, _use_new_zipfile_serialization=False)
    assert f"(it names {os.system.__module__}.system)" in complaint(path)
    torch.save(nn.Linear(4, 2), path, pickle_protocol=4)
    assert "or was not written by torch.save with its usual protocol" in complaint(path)


# --- hostile files


class Reduced:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def evil(marker: Path) -> list[Any]:
    code = f"open({str(marker)!r}, 'w').close()"
    return [
        Reduced(os.system, f"touch {marker}"),
        Reduced(eval, code),
        Reduced(exec, code),
        Reduced(subprocess.Popen, ["touch", str(marker)]),
        Reduced(io.open, str(marker), "w"),
        Reduced(torch.load, str(marker)),
        Reduced(torch.hub.load, "user/repo", "model"),
        Reduced(torch.save, torch.zeros(1), str(marker)),
    ]


GENEROUS = (
    (),
    ("mynets",),
    ("os",),
    ("posix",),
    ("nt",),
    ("builtins",),
    ("subprocess",),
    ("sys",),
    ("io",),
    ("_io",),
    ("torch",),
    ("torch.hub",),
    ("torch.serialization",),
    ("posix.system",),
    ("builtins.eval",),
    ("mynets", "mynets.small.system", "mynets.small.Popen"),
)


@pytest.mark.parametrize("legacy_format", [False, True])
@pytest.mark.parametrize("number", range(8))
def test_nothing_in_a_hostile_file_runs_whatever_is_allowed(
    tmp_path: Path, nets: Any, number: int, legacy_format: bool
) -> None:
    marker, path = tmp_path / "marker", tmp_path / "evil.pt"
    for thing in (evil(marker)[number], {"state_dict": {"a": torch.zeros(1)}, "extra": evil(marker)[number]}):
        torch.save(thing, path, _use_new_zipfile_serialization=not legacy_format)
        for allow in GENEROUS:
            complaint(path, recipe(), allow)
            assert not marker.exists()
    path.write_bytes(pickle.dumps(evil(marker)[number]))
    complaint(path)
    assert not marker.exists()


def test_a_hostile_file_is_told_apart_from_one_that_wants_a_flag(tmp_path: Path) -> None:
    path = tmp_path / "evil.pt"
    torch.save(Reduced(os.system, "touch marker"), path)
    assert complaint(path) == (
        f"{path} names classes or functions that are not admitted; nothing in the file was run:\n"
        f"  {os.system.__module__}.system  the standard library is never admitted, it can run commands\n"
        f"{WAYS_OUT}"
    )


def with_globals(path: Path, *names: str) -> None:
    """An archive whose pickle makes a tuple of these globals and calls each with one string."""
    parts = b"".join(
        f"c{n.rpartition('.')[0]}\n{n.rpartition('.')[2]}\n".encode() + b"X\x01\0\0\0x\x85R" for n in names
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", b"\x80\x02(" + parts + b"t.")
        archive.writestr("m/version", "3")
        archive.writestr("m/byteorder", "little")


@pytest.mark.parametrize(
    ("name", "allow", "why"),
    [
        ("mynets.small.system", ("mynets",), "defined elsewhere, in posix"),
        ("mynets.small.system", ("mynets", "mynets.small.system"), "defined elsewhere, in posix"),
        ("mynets.small.Popen", ("mynets",), "defined elsewhere, in subprocess"),
        ("mynets.small.torch", ("mynets",), "defined elsewhere, in no module"),
        ("mynets.small.Config", ("mynets",), "no layer of the file comes from its package"),
        ("mynets.small.instance", ("mynets",), "a Net, neither a class nor a function"),
        (
            "torch.nn.functional.handle_torch_function",
            ("torch.nn.functional",),
            "defined elsewhere, in torch.overrides",
        ),
        ("torch.nn.modules.module._IncompatibleKeys", (), "not a layer"),
        ("torch.nn.nothing.Here", (), "there is no module 'torch.nn.nothing'"),
        (
            "torch.fx.graph_module.GraphModule",
            (),
            "of torch only torch.nn and torch.ao.nn are ever admitted, the rest can run code",
        ),
        (
            "torch.utils.cpp_extension.load",
            (),
            "of torch only torch.nn and torch.ao.nn are ever admitted, the rest can run code",
        ),
        ("pip.main", (), "pip is never admitted, it can run commands"),
        ("numpy.memmap", (), "values of numpy are never admitted"),
        ("__main__.Net", (), "not admitted; needs --allow __main__"),
    ],
)
@pytest.mark.skipif(os.name != "posix", reason="names the module that os.system is from")
def test_what_counts_is_where_a_thing_is_defined(
    tmp_path: Path, nets: Any, name: str, allow: tuple[str, ...], why: str
) -> None:
    with_globals(tmp_path / "m.pt", name)
    assert f"  {name}  {why}" in complaint(tmp_path / "m.pt", recipe(), allow)


@pytest.mark.parametrize(
    ("allow", "said"),
    [
        (
            "os",
            (
                "--allow os: the standard library is never admitted, it can run commands; "
                "name the package that defines the model's layers"
            ),
        ),
        (
            "subprocess.Popen",
            (
                "--allow subprocess.Popen: the standard library is never admitted, "
                "it can run commands; name the package that defines the model's layers"
            ),
        ),
        (
            "torch",
            (
                "--allow torch: of torch only torch.nn and torch.ao.nn are ever admitted, "
                "the rest can run code; name the package that defines the model's layers"
            ),
        ),
        (
            "pip",
            (
                "--allow pip: pip is never admitted, it can run commands; "
                "name the package that defines the model's layers"
            ),
        ),
        ("", "--allow : expected a dotted name such as torchvision.models"),
        ("a..b", "--allow a..b: expected a dotted name such as torchvision.models"),
        ("*", "--allow *: expected a dotted name such as torchvision.models"),
    ],
)
def test_flags_that_would_admit_what_runs_commands_are_refused(
    tmp_path: Path, dense: nn.Module, allow: str, said: str
) -> None:
    zipped(dense, tmp_path / "w.pt")
    assert complaint(tmp_path / "w.pt", recipe(), (allow,)) == said


def test_many_refusals_are_shortened(tmp_path: Path) -> None:
    with_globals(tmp_path / "m.pt", *(f"package{i}.Net" for i in range(30)))
    said = complaint(tmp_path / "m.pt")
    assert "  and 10 more\n" in said and len(said.splitlines()) == 26


def test_what_torch_admitted_before_is_admitted_afterwards(tmp_path: Path, nets: Any) -> None:
    torch.save(nets.Net(), tmp_path / "m.pt")
    before = set(torch.serialization.get_safe_globals())
    read_model(tmp_path / "m.pt", recipe(None), allow=["mynets"])
    assert set(torch.serialization.get_safe_globals()) == before


def test_a_module_that_was_not_pickled_whole(tmp_path: Path, nets: Any) -> None:
    """A hostile or broken pickle can make a layer without ever running its constructor."""
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        archive.writestr("m/data.pkl", b"\x80\x02ctorch.nn.modules.linear\nLinear\n)\x81.")
        archive.writestr("m/version", "3")
        archive.writestr("m/byteorder", "little")
    assert complaint(tmp_path / "m.pt").startswith(
        f"{tmp_path}/m.pt: the pickled Linear is not complete (AttributeError: "
    )


# --- digest


def test_the_digest_follows_names_shapes_types_and_values_but_not_their_order() -> None:
    class Holder(nn.Module):
        def __init__(self, **tensors: Tensor) -> None:
            super().__init__()
            for name, value in tensors.items():
                self.register_buffer(name, value)

    def digest(**tensors: Tensor) -> str:
        return weights_digest(Holder(**tensors))

    a, b = torch.arange(6.0), torch.tensor(True)
    base = digest(a=a, b=b)
    assert re.fullmatch("[0-9a-f]{64}", base)
    assert digest(b=b, a=a) == base == digest(a=a.clone(), b=b)
    others = [
        digest(a=a.view(2, 3), b=b),
        digest(c=a, b=b),
        digest(a=a + 1, b=b),
        digest(a=a.int(), b=b),
        digest(a=a, b=~b),
        digest(a=a),
    ]
    assert len({base, *others}) == 7
    wide = torch.arange(12.0).view(3, 4)
    assert digest(a=wide.t()) == digest(a=wide.t().contiguous()) != digest(a=wide)
    assert digest(a=torch.zeros(3, dtype=torch.bfloat16)) != digest(a=torch.zeros(3, dtype=torch.float16))
    assert digest(a=torch.zeros(0)) != digest(a=torch.zeros(0, 2))


class Versioned(nn.Linear):
    """A class that reads its state by the version that it was written with, as torchvision's MNASNet does."""

    _version = 2

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *others: Any) -> None:
        if metadata.get("version") not in (1, 2):
            raise ValueError(f"version should be 1 or 2, and is {metadata.get('version')}")
        super()._load_from_state_dict(state, prefix, metadata, *others)


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_a_class_that_asks_for_the_version_of_its_state(tmp_path: Path, ending: str) -> None:
    """A plain mapping has no versions: the model's own are taken."""
    source, path = Versioned(3, 2), tmp_path / f"weights.{ending}"
    if ending == "pt":
        torch.save(source.state_dict(), path)
    else:
        save_file(dict(source.state_dict()), path)
    target = Versioned(3, 2)
    load_state(target, read_contents(path, ()), path, "Versioned")
    assert torch.equal(target.weight, source.weight)
    load_tensors(target, {name: value * 2 for name, value in source.state_dict().items()})
    assert torch.equal(target.weight, source.weight * 2)


def test_tied_weights_that_differ_in_the_file(tmp_path: Path) -> None:
    """They are one tensor in the model: whichever came last would win."""
    model = nn.ModuleDict({"embed": nn.Embedding(5, 3), "out": nn.Linear(3, 5, bias=False)})
    model["out"].weight = model["embed"].weight
    state = {"embed.weight": torch.zeros(5, 3), "out.weight": torch.ones(5, 3)}
    with pytest.raises(ModelError) as caught:
        load_state(model, state, tmp_path / "w.pt", "tied")
    assert str(caught.value).startswith(
        f"{tmp_path / 'w.pt'} does not fit tied: 1 tied in the model and different in the file (embed.weight "
        "and out.weight)"
    )
    load_state(model, {"embed.weight": torch.ones(5, 3), "out.weight": torch.ones(5, 3)}, tmp_path, "tied")
    assert bool((model["embed"].weight == 1).all())


def test_the_same_weights_and_metadata_are_the_same_bytes(tmp_path: Path) -> None:
    """The library writes metadata in an order that each call draws."""
    model, path = lenet5(), tmp_path / "w.safetensors"
    metadata = {key: f'{key}: "é\n\x1f\x7f\U0001f600\\/"' for key in ("format", "model", "cuts", "a", "ü")}
    written = set()
    for _ in range(6):
        save_weights(model, path, metadata)
        written.add(path.read_bytes())
    assert len(written) == 1
    with safe_open(path, framework="pt") as stored:
        assert stored.metadata() == metadata
    loaded = load_file(path)
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())
