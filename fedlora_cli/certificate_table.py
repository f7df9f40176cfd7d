"""A certificate as a table for the terminal: what combining lost, layer by layer."""

from __future__ import annotations

import math

from rich.table import Table

from fedlora.runs.report import Certificate, CertificateEntry

__all__ = ["certificate_table"]

_WORST_LAYERS = 8


def certificate_table(certificate: Certificate, *, with_change: bool) -> Table:
    """All layers together, then the worst of them.

    Args:
        certificate: what was measured.
        with_change: with the error against what training changed.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("layer", header_style="bold", overflow="fold")
    for name in ("error", "A,B mean", "bound", "gap closed", *(["vs change"] * with_change)):
        table.add_column(name, header_style="bold", justify="right", no_wrap=True)
    table.add_row(*_cells(certificate.overall, with_change), style="bold cyan")
    worst = sorted(certificate.modules, key=lambda e: (-e.relative_error, e.module))
    for entry in worst[:_WORST_LAYERS]:
        table.add_row(*_cells(entry, with_change))
    table.caption_justify = "left"
    left_out = len(worst) - _WORST_LAYERS
    table.caption = (
        "error: of the result against the exact mean of the products; A,B mean: of averaging the "
        "factors; bound: least possible at this rank"
        + (f"; the worst {_WORST_LAYERS} of {len(worst)} layers" if left_out > 0 else "")
        + ("; estimates, good to about 2 %" if certificate.overall.is_estimate else "")
    )
    return table


def _cells(entry: CertificateEntry, with_change: bool) -> list[str]:
    cells = [
        entry.module or "all layers",
        f"{entry.relative_error:.3g}",
        f"{entry.factor_mean_error:.3g}",
        f"{entry.lower_bound:.3g}",
        "–" if math.isnan(entry.gap_closed) else f"{entry.gap_closed:.1%}",
    ]
    return cells + ([f"{entry.relative_error_vs_change:.3g}"] if with_change else [])
