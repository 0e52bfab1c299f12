"""A model that was cut elsewhere, told in units of the dense model's coupled groups."""
