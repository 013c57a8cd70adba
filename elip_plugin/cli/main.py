"""The command `elip`."""

from __future__ import annotations

import sys

import typer

from elip_plugin.cli import bench, data, doctor, lavis, plan, show
from elip_plugin.errors import ElipError

app = typer.Typer(help="ELIP: prune and merge vision tokens.", no_args_is_help=True)
app.command()(plan.models)
app.command()(plan.plan)
app.command()(show.show)
app.command()(doctor.doctor)
app.add_typer(bench.app, name="bench")
app.add_typer(data.app, name="data")
app.add_typer(lavis.app, name="lavis")


def main() -> None:
    """Run the command line; an error of ours becomes one line on stderr and exit code 1."""
    try:
        app()
    except ElipError as error:
        typer.echo(f"elip: {' '.join(str(error).splitlines())}", err=True)
        sys.exit(1)
