"""Following channels through one forward call."""
