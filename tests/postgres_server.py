"""A PostgreSQL server of its own for a test, where one is installed (Debian: apt install postgresql)."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

USERS = ("postgres", "nobody")
"""whom the server runs as where the test runs as root, which it refuses"""


def find_program(name: str) -> str | None:
    found = shutil.which(name)
    if found is None:
        debian = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
        found = str(debian[-1]) if debian else None
    return found


def why_missing() -> str:
    """Why no server can be started; '' where one can."""
    missing = [name for name in ("initdb", "pg_ctl") if find_program(name) is None]
    if missing:
        return f"no PostgreSQL here ({missing[0]} is missing); Debian: apt install postgresql"
    if os.geteuid() == 0 and (shutil.which("runuser") is None or _find_user() is None):
        return "PostgreSQL refuses to run as root, and there is no other user to run it as"
    return ""


def _find_user() -> str | None:
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next((user for user in USERS if user in known), None)


@contextmanager
def run_server() -> Iterator[str]:
    """Start a server in a folder of its own; yields the URL of its database."""
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    user, prefix = "", []
    if os.geteuid() == 0:
        user = _find_user() or ""
        shutil.chown(folder, user)
        prefix = ["runuser", "-u", user, "--"]
    folder.chmod(0o700)
    initdb, pg_ctl = find_program("initdb"), find_program("pg_ctl")
    assert initdb is not None and pg_ctl is not None
    data, port = folder / "data", _find_port()
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"

    def call(*command: str) -> None:
        done = subprocess.run(
            [*prefix, *command], cwd="/", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert done.returncode == 0, done.stdout

    try:
        call(initdb, "-D", str(data), "-U", "study", "--auth=trust", "-E", "UTF8", "--no-sync")
        call(pg_ctl, "-D", str(data), "-o", options, "-l", str(folder / "log"), "-w", "start")
        try:
            yield f"postgresql://study@127.0.0.1:{port}/postgres"
        finally:
            call(pg_ctl, "-D", str(data), "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _find_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
