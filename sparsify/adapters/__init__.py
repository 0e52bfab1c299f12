"""Penalties of a plan in the trainers of Lightning and transformers. Accelerate needs none: use `attach`."""
