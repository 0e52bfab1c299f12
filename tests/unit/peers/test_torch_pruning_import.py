"""torch-pruning is imported when it is used, and in no other package."""

import subprocess
import sys
from pathlib import Path

import pytest

BROKEN = {
    "raises": "raise RuntimeError('operator torchvision::nms does not exist')",
    "another version": "models = None",
}


def run(code: str, *path: Path) -> str:
    code = f"import sys; sys.path[:0] = {[str(p) for p in path]}\n{code}"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_sparsify_does_not_import_it() -> None:
    used = "import sparsify; sparsify.cut, sparsify.make_plan, sparsify.apply"
    assert run(f"{used}; print('torch_pruning' in sys.modules)") == "False\n"


@pytest.mark.parametrize("how", BROKEN)
def test_a_timm_that_does_not_fit_is_not_asked(how: str, tmp_path: Path) -> None:
    (tmp_path / "timm.py").write_text(BROKEN[how] + "\n")
    code = (
        "from sparsify.peers.torch_pruning_import import torch_pruning\n"
        "print(torch_pruning().__name__, 'timm' in sys.modules)"
    )
    assert run(code, tmp_path) == "torch_pruning False\n"


def test_a_timm_that_is_there_stays() -> None:
    code = (
        "import types; sys.modules['timm'] = timm = types.ModuleType('timm')\n"
        "from sparsify.peers.torch_pruning_import import torch_pruning\n"
        "torch_pruning(); print(sys.modules['timm'] is timm)"
    )
    assert run(code) == "True\n"


def test_one_message_where_it_is_missing_or_broken(tmp_path: Path) -> None:
    (tmp_path / "torch_pruning.py").write_text("raise OSError('no such library')\n")
    code = (
        "from sparsify.errors import ModelError\n"
        "from sparsify.peers.torch_pruning_import import torch_pruning\n"
        "try: torch_pruning()\n"
        "except ModelError as error: print(error)"
    )
    assert run(code, tmp_path) == (
        "torch-pruning cannot be imported (OSError: no such library): pip install 'torch-pruning>=1.6,<2'\n"
    )
