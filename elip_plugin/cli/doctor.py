"""`elip doctor`."""

from __future__ import annotations

import typer


def doctor() -> None:
    """Say what is installed, what does not fit, and the command that mends it."""
    from rich.console import Console
    from rich.table import Table

    from elip_plugin.measure.environment import examine

    table = Table(box=None, show_header=False)
    findings = examine()
    for finding in findings:
        table.add_row("✗" if finding.mend else "✓", finding.about, finding.text)
        if finding.mend:
            table.add_row("", "", f"mend: {finding.mend}")
    Console(markup=False, highlight=False).print(table)
    if any(finding.mend for finding in findings):
        raise typer.Exit(1)
