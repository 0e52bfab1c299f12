"""The language of sparsify as data: recipes, cut logs and reports. Imports pydantic and never torch."""

from sparsify_schemas.cuts import Cuts
from sparsify_schemas.recipe import Recipe
from sparsify_schemas.report import Report
from sparsify_schemas.rule import Rule

__all__ = ["Cuts", "Recipe", "Report", "Rule"]
