"""torch-pruning is imported when it is used, and in no other package."""

import subprocess
import sys
from pathlib import Path

import pytest
from apart import Apart

BROKEN = {
    "raises": "raise RuntimeError('operator torchvision::nms does not exist')",
    "another version": "models = None",
}


def run(code: str, *path: Path) -> str:
    """In a process that has imported neither torch-pruning nor timm."""
    fresh = "assert not {'timm', 'torch_pruning'} & set(sys.modules); warnings.simplefilter('error')"
    process = Apart(f"import sys, warnings; sys.path[:0] = {[str(p) for p in path]}; {fresh}\n{code}")
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out


def test_import_sparsify_does_not_import_it() -> None:
    used = "import sys, sparsify; sparsify.cut, sparsify.make_plan, sparsify.apply"
    code = f"{used}; print('torch_pruning' in sys.modules)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr


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
