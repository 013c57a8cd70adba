"""`elip doctor`."""

from __future__ import annotations

import typer

from elip_plugin.cli.help import examples

EXAMPLES = examples("elip doctor", "python -m elip_plugin doctor")


def doctor() -> None:
    """Check what is installed, what does not fit, and print the command that fixes it."""
    from rich.console import Console
    from rich.table import Table

    from elip_plugin.cli.environment import check_environment

    table = Table(box=None, show_header=False)
    findings = check_environment()
    for finding in findings:
        table.add_row("✗" if finding.fix else "✓", finding.about, finding.text)
        if finding.fix:
            table.add_row("", "", f"fix: {finding.fix}")
    Console(markup=False, highlight=False).print(table)
    if any(finding.fix for finding in findings):
        raise typer.Exit(1)
