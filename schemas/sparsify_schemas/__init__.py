"""The language of sparsify as data: recipes, cut logs and reports. Imports pydantic and never torch."""

from sparsify_schemas.cuts import Cuts
from sparsify_schemas.recipe import Recipe, Rule
from sparsify_schemas.report import Report

__all__ = ["Cuts", "Recipe", "Report", "Rule"]
