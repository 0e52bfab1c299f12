"""Cutting units out of a copy, by a log of operations that replays without tracing."""
