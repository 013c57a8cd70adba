"""`elip check`: whether pruning is safe for a user's pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from elip_plugin.cli.options import (
    Checkpoint,
    Device,
    Images,
    ImageSize,
    Keep,
    Model,
    Plan,
    RandomWeights,
    examples,
    print_table,
    progress_bars,
)
from elip_plugin.cli.target import check_weights, default_device, resolve

if TYPE_CHECKING:
    from elip_plugin.check.study import Result
    from elip_plugin.check.tables import Table

EXAMPLES = examples(
    "elip check --model ViT-B-32 --checkpoint openai --images photos -o out",
    "elip check --model elip-third-ViT-B-32 --random --images photos -o out",
)


def check(
    model: Model,
    images: Images,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the report and the cache.")],
    checkpoint: Checkpoint = "",
    random: RandomWeights = False,
    plan: Plan = "",
    keep: Keep = "",
    bound: Annotated[
        str,
        typer.Option(
            help="What must hold, such as overlap@10=0.95: finds the cheapest plan that keeps it."
        ),
    ] = "",
    neighbors: Annotated[
        int, typer.Option(min=1, help="Nearest neighbors of each picture to compare.")
    ] = 10,
    batch: Annotated[int, typer.Option(min=1, help="Pictures per forward.")] = 32,
    image_size: ImageSize = None,
    device: Device = "",
) -> None:
    """Compare pruned embeddings of your pictures with unpruned ones by the same weights.

    The same command continues where an earlier one was stopped. With --bound the exit code is 1 if
    no plan is shown to keep it.
    """
    from elip_plugin.check.bound import parse_bound
    from elip_plugin.check.page import write_page
    from elip_plugin.check.study import check, check_count, write_result
    from elip_plugin.files import make_folder
    from elip_plugin.patching.install import find_pruner
    from elip_plugin.pictures import find_items

    asked = parse_bound(bound) if bound else None
    items = find_items(images)
    most = max(neighbors, asked.k if asked else 0)
    check_count(len(items), most, asked)
    target = resolve(model, plan, keep, embeds=True)
    check_weights("check", model, checkpoint, random)
    make_folder(out)
    with progress_bars() as progress:
        host_model = target.build(
            checkpoint=checkpoint, image_size=image_size, device=default_device(device)
        )
        result = check(
            host_model,
            items,
            find_pruner(host_model.model).config,
            out / "cache",
            k=neighbors,
            bound=asked,
            batch=batch,
            progress=progress,
        )
        write_result(result, host_model, out)
        write_page(result, host_model, out)
    _print(result)
    typer.echo(f"written to {out / 'index.html'}, with the worst pictures")
    if not result.holds:
        raise typer.Exit(1)


def _print(result: Result) -> None:
    from elip_plugin.check.tables import (
        describe_plan,
        folders_table,
        measures_table,
        trials_table,
        verdict,
    )

    _print_table(measures_table(result), describe_plan(result))
    if result.folders:
        _print_table(folders_table(result), "by folder")
    for name, why in result.broken.items():
        typer.echo(f"left out: {name}: {why}", err=True)
    for note in result.notes:
        typer.echo(note, err=True)
    if result.bound:
        _print_table(trials_table(result), "plans tried, the mildest first")
        typer.echo(verdict(result))


def _print_table(table: Table, title: str) -> None:
    from rich.table import Table as RichTable
    from rich.text import Text

    heads, rows = table
    printed = RichTable(*heads, title=title)
    for row in rows:
        printed.add_row(*map(Text, row))  # a folder's name may look like markup
    print_table(printed)
