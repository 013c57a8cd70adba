"""`elip adapt`: teach a pruned tower its own unpruned features."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from elip_plugin.cli.options import (
    Device,
    Images,
    ImageSize,
    Keep,
    Model,
    Plan,
    examples,
    print_table,
    progress_bars,
)
from elip_plugin.cli.target import default_device, resolve
from elip_plugin.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from elip_plugin.check.embed import Embedder
    from elip_plugin.check.store import Rows
    from elip_plugin.config import ElipConfig
    from elip_plugin.hosts.base import HostModel
    from elip_plugin.pictures import Item

HELD_OUT, FEWEST = 0.1, 100
"""Share of the pictures that nothing is learned from, and the fewest of them."""

NEIGHBORS = 10

EXAMPLES = examples(
    "elip adapt --model ViT-B-32 --checkpoint openai --images photos -o adapted",
    "elip adapt --model ViT-B-32 --checkpoint a.pt --images b --passes 4 -o c",
)


def adapt(
    model: Model,
    images: Images,
    checkpoint: Annotated[
        str, typer.Option(help="Weights: a file, a tag of OpenCLIP's, or a folder.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the weights, and a report.")],
    plan: Plan = "",
    keep: Keep = "",
    passes: Annotated[float, typer.Option(help="How often each picture is seen.")] = 2.0,
    batch: Annotated[int, typer.Option(min=1, help="Pictures per step.")] = 32,
    rate: Annotated[float | None, typer.Option(help="Largest learning rate.")] = None,
    bf16: Annotated[bool, typer.Option("--bf16", help="Compute in bfloat16 (autocast).")] = False,
    image_size: ImageSize = None,
    device: Device = "",
) -> None:
    """Adapt weights to a plan by your pictures, without labels; a stopped command continues.

    The result embeds at the pruned cost into an index of unpruned embeddings. A tenth of the
    pictures, at least 100, is held out for the report; give 200 or more.
    """
    import torch

    from elip_plugin.adapting import RATE, adapt
    from elip_plugin.api import find_handle
    from elip_plugin.check.embed import Embedder
    from elip_plugin.files import make_folder, write_text
    from elip_plugin.label import label_of
    from elip_plugin.pictures import find_items

    target = resolve(model, plan, keep, embeds=True)
    items = find_items(images)
    kept = max(FEWEST, int(HELD_OUT * len(items)))
    if len(items) < 2 * kept:
        raise DataError(
            f"{len(items)} pictures are too few to adapt to: give {2 * FEWEST} or more, better "
            "some thousands"
        )
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(0)).tolist()
    held_out, learned = [items[i] for i in order[:kept]], [items[i] for i in order[kept:]]
    device = default_device(device)
    host_model = target.build(checkpoint=checkpoint, image_size=image_size, device=device)
    make_folder(out)
    config = find_handle(host_model.model).config
    steps = max(1, round(passes * len(learned) / batch))

    def load(places: Sequence[int]) -> Tensor:
        return _read(host_model, [learned[i] for i in places])

    with progress_bars() as shown:
        embedder = Embedder(host_model, out / "cache", batch, shown)
        full, before = _rows(embedder, held_out, None), _rows(embedder, held_out, config)
        adapt(
            host_model, len(learned), load, steps=steps, batch=batch,
            rate=RATE if rate is None else rate, bf16=bf16,
            state=out / "state.pt", progress=lambda step, loss: shown("adapting", step, steps),
        )  # fmt: skip
        # Another one, for the weights are others now.
        after = _rows(Embedder(host_model, out / "cache", batch, shown), held_out, config)
    report = _report(full, before, after)
    weights, label = host_model.save_weights(out), label_of(host_model)
    about = {
        "label": label, "model": host_model.name, "plan": config.to_mapping(), "steps": steps,
        "held_out": kept, "measures": report,
    }  # fmt: skip
    write_text(out / "report.json", json.dumps(about, indent=1) + "\n")
    _print(report, f"{label}; {kept} pictures that were held out, with 95% intervals")
    (before_mean, *_), (after_mean, *_) = report["cosine"]
    if after_mean < before_mean:
        typer.echo(
            "the adapted weights are farther from the unpruned features than before: give more "
            "pictures or --passes, or a smaller --rate, and another --out",
            err=True,
        )
    typer.echo(f"adapted weights: use --checkpoint {weights} with the same plan")


def _read(host_model: HostModel, items: Sequence[Item]) -> Tensor:
    import torch

    from elip_plugin.check.embed import read_ahead

    ((_, images, faults),) = read_ahead(items, host_model.preprocess, len(items))(range(len(items)))
    _refuse(items, faults)
    return torch.stack(images)


def _rows(embedder: Embedder, items: Sequence[Item], config: ElipConfig | None) -> Rows:
    rows, faults = embedder.pictures(items, config)
    _refuse(items, faults)
    return rows


def _refuse(items: Sequence[Item], faults: Mapping[int, str]) -> None:
    """Refuse pictures that cannot be read."""
    for place, why in faults.items():
        raise DataError(f"{items[place].name} cannot be read ({why}): remove it, and start again")


def _report(full: Rows, *sides: Rows) -> dict[str, list[list[float]]]:
    """Return mean and interval of each measure, before and after."""
    from elip_plugin.check.neighbors import cosines, overlaps
    from elip_plugin.check.statistics import estimate

    values = [{"cosine": cosines(full, s), **overlaps(full, s, [NEIGHBORS])} for s in sides]
    return {name: [list(estimate(side[name][:, None])[0]) for side in values] for name in values[0]}


def _print(report: dict[str, list[list[float]]], title: str) -> None:
    from rich.table import Table

    table = Table("against unpruned", "before", "after", title=title)
    for name, pair in report.items():
        table.add_row(name, *(f"{mean:.4f} ({low:.4f} to {high:.4f})" for mean, low, high in pair))
    print_table(table)
