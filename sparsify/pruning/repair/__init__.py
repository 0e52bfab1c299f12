"""Repair after a cut: what is left learns, in closed form, what the dense model computed at the same
place."""
