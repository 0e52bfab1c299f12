"""Proof that a cut model computes what the masked dense model does."""
