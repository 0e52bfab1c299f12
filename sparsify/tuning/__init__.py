"""A study: many runs of one recipe with different values, to find the best recipe. Optuna is imported here
alone."""
