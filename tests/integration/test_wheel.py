"""What a user installs: three packages, and no top-level `cli`, `schemas`, `recipes` or `tests`."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_wheel_holds_three_packages_and_the_command(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(tmp_path),
        str(ROOT),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("sparsify_recipes-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        entry = archive.read(next(n for n in names if n.endswith("entry_points.txt"))).decode()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "sparsify",
        "sparsify_cli",
        "sparsify_schemas",
    }
    assert {"sparsify/py.typed", "sparsify_cli/py.typed", "sparsify_schemas/py.typed"} <= set(names)
    assert "sparsify = sparsify_cli.app:main" in entry
