"""What tests that start processes of their own share."""

import random
import socket

BRIEFLY = """
from sparsify.runs import evaluate
from sparsify.runs.apply import apply
from sparsify_schemas.target import Cpu
apply.__kwdefaults__["timing"] = 0.05
evaluate.default_targets = lambda: {"eager": Cpu(kind="cpu")}
"""
"""for the first lines of a process: it times as briefly as conftest.py has the tests do, and in eager PyTorch alone"""


def free_port() -> str:
    """A port that nothing uses, below those that a system gives to outgoing connections: so none takes it before it is bound."""
    chance = random.SystemRandom()
    while True:
        port = chance.randrange(20_000, 30_000)
        with socket.socket() as here:
            try:
                here.bind(("127.0.0.1", port))
            except OSError:
                continue
        return str(port)
