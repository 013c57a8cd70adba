"""`elip doctor`."""

from __future__ import annotations

import typer

from elip_plugin.cli.options import examples, print_table

EXAMPLES = examples("elip doctor", "python -m elip_plugin doctor")


def doctor() -> None:
    """Check what is installed, what does not fit, and print the command that fixes it."""
    from rich.table import Table

    from elip_plugin.cli.environment import check_environment

    table = Table(box=None, show_header=False)
    findings = check_environment()
    for finding in findings:
        table.add_row("✗" if finding.fix else "✓", finding.about, finding.text)
        if finding.fix:
            table.add_row("", "", f"fix: {finding.fix}")
    print_table(table)
    if any(finding.fix for finding in findings):
        raise typer.Exit(1)
