"""`elip lavis`: LAVIS' runner, from its wheel alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from elip_plugin.cli.options import examples

app = typer.Typer(
    help="Run LAVIS, from its wheel alone.",
    epilog=examples(
        "elip lavis configs",
        "elip lavis train --cfg-path lavis_configs/projects/albef/openmoji.yaml",
    ),
    no_args_is_help=True,
)

CfgPath = Annotated[
    Path,
    typer.Option("--cfg-path", help="A LAVIS run config, or lavis_configs/... of this package."),
]
Options = Annotated[
    list[str] | None, typer.Option("--options", help="Override, such as run.max_epoch=1.")
]
MoreOptions = Annotated[list[str] | None, typer.Argument(help="More overrides.", metavar="K=V")]


@app.command(
    epilog=examples(
        "elip lavis train --cfg-path run.yaml",
        "elip lavis train --cfg-path run.yaml run.max_epoch=1 model.elip.preset=half",
    )
)
def train(cfg_path: CfgPath, options: Options = None, more: MoreOptions = None) -> None:
    """Train a model, and evaluate it on the config's splits."""
    _run(cfg_path, [*(options or []), *(more or [])], evaluate=False)


@app.command(
    epilog=examples(
        "elip lavis evaluate --cfg-path run.yaml",
        "elip lavis evaluate --cfg-path run.yaml --checkpoint checkpoint_19.pth",
    )
)
def evaluate(
    cfg_path: CfgPath,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Weights; by default those that the config loads.")
    ] = None,
    options: Options = None,
    more: MoreOptions = None,
) -> None:
    """Evaluate a model on the config's test splits."""
    _run(cfg_path, [*(options or []), *(more or [])], evaluate=True, checkpoint=checkpoint)


@app.command(
    epilog=examples("elip lavis configs", 'cp "$(elip lavis configs | grep albef/vqa)" run.yaml')
)
def configs() -> None:
    """List the run configs that come with this package."""
    from elip_plugin.hosts.lavis.compat.paths import configs_root

    for path in sorted((configs_root() / "projects").rglob("*.yaml")):
        typer.echo(path)


def _run(cfg_path: Path, overrides: list[str], **given: Any) -> None:
    """Run LAVIS, and print the scores."""
    from elip_plugin.hosts.registry import load_host

    load_host("lavis")  # where it is missing, this says how to install it
    from elip_plugin.hosts.lavis.compat.paths import find_config
    from elip_plugin.hosts.lavis.compat.train import run

    config = find_config(cfg_path)
    if config != cfg_path:
        typer.echo(f"run config: {config}")
    for split, values in run(config, overrides, **given).items():
        figures = (values or {}).items()
        shown = [f"{k} {v:.1f}" for k, v in figures if isinstance(v, (int, float))]
        if shown:
            typer.echo(f"{split}: {', '.join(shown)}")
