"""What is coupled to what: the structure of a model, cutting it, and proving the cut."""
