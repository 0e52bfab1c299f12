"""A fuzzer of the whole command line, for ten minutes with fixed seeds."""

import subprocess
import sys
from pathlib import Path

import pytest

FUZZER = Path(__file__).parents[1] / "benchmarks" / "fuzz_commands.py"


@pytest.mark.nightly
@pytest.mark.parametrize("seed", [16, 17])
def test_no_fault_is_found(seed: int) -> None:
    command = [sys.executable, str(FUZZER), "--seconds", "300", "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
