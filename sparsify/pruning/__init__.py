"""From a recipe and a model to a plan, from a plan and scores to a cut."""
