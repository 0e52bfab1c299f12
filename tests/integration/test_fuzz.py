"""Fuzzers of the whole command line and of whole runs, for five minutes a seed."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("fuzzer", "seed"), [("fuzz_commands.py", 16), ("fuzz_commands.py", 17), ("fuzz_runs.py", 16)]
)
def test_no_fault_is_found(fuzzer: str, seed: int) -> None:
    command = [sys.executable, str(BENCHMARKS / fuzzer), "--seconds", "300", "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
