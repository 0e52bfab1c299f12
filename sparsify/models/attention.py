"""Attention lives in `sparsify.nn.attention`; files and recipes of users name this module."""

from sparsify.nn.attention import *  # noqa: F403
