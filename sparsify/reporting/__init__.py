"""Reports, plans and differences as tables. Imports no torch."""
