"""Training with penalties: hooks on an ordinary loop, and train stages."""
