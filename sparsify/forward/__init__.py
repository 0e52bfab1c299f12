"""Calling a model: what with, on copies of what, and what a call may hold that cannot be followed."""
