"""Where a report comes from: when, on which machine, from which recipe and weights."""

from itertools import groupby

from sparsify.formatting.numbers import MISSING, count_noun
from sparsify.formatting.table import Table, make_columns
from sparsify.reporting import table_titles
from sparsify_schemas.report import Report

WEIGHTS = "model.safetensors"


def provenance_table(report: Report) -> Table:
    """Date, seed, digests, machine and versions."""
    machine = report.environment
    place = [f"{machine.processor}, {count_noun(machine.cores, 'core')}, {machine.platform}"]
    place += filter(None, [describe_processes(report)])
    packages = [f"{name} {number}" for name, number in sorted(machine.packages.items())]
    rows = (
        ("created", format_minute(report.created)),
        ("seed", str(report.seed)),
        ("recipe", report.recipe_digest[:16]),
        ("plan", report.plan_digest[:16]),
        ("dense weights", report.model_digest[:16]),
        ("cut weights", report.files.get(WEIGHTS, MISSING)[:16]),
        ("machine", "; ".join(place)),
        ("versions", ", ".join([f"Python {machine.python}", *packages])),
    )
    return Table(table_titles.PROVENANCE, make_columns("", ""), rows)


def describe_processes(report: Report) -> str:
    """'trained by 2 processes, then by 1 process'; '' where nothing was trained or the number is unknown."""
    counts = groupby(epoch.processes for epoch in report.history if epoch.processes is not None)
    parts = [f"by {n} process{'' if n == 1 else 'es'}" for n, _ in counts]
    return f"trained {', then '.join(parts)}" if parts else ""


def format_minute(created: str) -> str:
    """'2025-11-20T05:41:07+00:00' -> '2025-11-20 05:41 UTC'."""
    return f"{created[:16].replace('T', ' ')} UTC"
