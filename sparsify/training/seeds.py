"""Seeds of everything random in an epoch."""

import hashlib


def derive_seed(seed: int, stage: int, epoch: int) -> int:
    """63 bits of SHA-256 over the three numbers."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{stage}/{epoch}".encode()).digest()[:8], "big") >> 1
