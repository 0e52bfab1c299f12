"""Chance in single examples, the same whichever process reads them and in whichever order."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_example(seed: int, number: int) -> None:
    """Seed torch, numpy and random for one example: what is random in it follows from its number and the
    seed, not from what was read before."""
    own = (seed * 1_000_003 + number) % 2**63
    random.seed(own)
    np.random.seed(own % 2**32)
    torch.default_generator.manual_seed(own)


@contextmanager
def keep_random_states() -> Iterator[None]:
    """Put the random states of torch, numpy and random back at the end."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
