"""Other packages that prune: their criteria on our groups, and what they do to the same model."""
