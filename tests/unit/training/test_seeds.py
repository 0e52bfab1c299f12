"""Seeds of everything random in an epoch."""

from sparsify.training.seeds import derive_seed


def test_derived_seeds_differ_in_each_part():
    seeds = {derive_seed(a, b, c) for a in range(5) for b in range(5) for c in range(5)}
    assert len(seeds) == 125
    assert all(0 <= s < 2**63 for s in seeds)
