"""One run of a recipe: its stages, its folder, its files."""
