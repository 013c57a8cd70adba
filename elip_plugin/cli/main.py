"""The command `elip`."""

from __future__ import annotations

import io
import sys
from importlib import import_module
from typing import Annotated

import typer

from elip_plugin.cli import adapt, bench, check, doctor, embed, export, lavis, plan, show
from elip_plugin.cli.options import examples
from elip_plugin.errors import ElipError

app = typer.Typer(no_args_is_help=True)
app.command(epilog=plan.MODELS_EXAMPLES)(plan.models)
app.command(epilog=plan.PLAN_EXAMPLES)(plan.plan)
app.command(epilog=show.EXAMPLES)(show.show)
app.command(epilog=export.EXAMPLES)(export.export)
app.command(epilog=check.EXAMPLES)(check.check)
app.command(epilog=embed.EXAMPLES)(embed.embed)
app.command(epilog=adapt.EXAMPLES)(adapt.adapt)
app.command(epilog=doctor.EXAMPLES)(doctor.doctor)
app.add_typer(bench.app, name="bench")
app.add_typer(lavis.app, name="lavis")


def _print_version(asked: bool) -> None:
    if asked:
        # The package itself, which has the version and else only what its modules have.
        typer.echo(f"elip-plugin {import_module('elip_plugin').__version__}")
        raise typer.Exit


@app.callback(epilog=examples("elip models", "elip plan --model elip-ViT-B-16"))
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    """ELIP: prune and merge vision tokens."""


def main() -> None:
    """Run the command line; an error of ours becomes one line on stderr and exit code 1."""
    for stream in (sys.stdout, sys.stderr):  # without a locale they are ASCII, which has no bars
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        app()
    except ElipError as error:
        typer.echo(f"elip: {' '.join(str(error).splitlines())}", err=True)
        sys.exit(1)
