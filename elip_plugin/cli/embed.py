"""`elip embed`: pictures to features, at the cost of a plan."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated

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
    progress_bars,
)
from elip_plugin.cli.target import check_weights, default_device, resolve

EXAMPLES = examples(
    "elip embed --model ViT-B-32 --checkpoint openai --images photos -o index",
    "elip embed --model hf:FOLDER --checkpoint FOLDER --images photos -o index",
)


def embed(
    model: Model,
    images: Images,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for features and names.")],
    checkpoint: Checkpoint = "",
    random: RandomWeights = False,
    plan: Plan = "",
    keep: Keep = "",
    batch: Annotated[int, typer.Option(min=1, help="Pictures per forward.")] = 32,
    image_size: ImageSize = None,
    device: Device = "",
) -> None:
    """Embed pictures, pruned: features.npy, of length 1, and names.json.

    The same command continues where an earlier one was stopped.
    """
    from elip_plugin.check.embed import embed
    from elip_plugin.label import label_of

    target = resolve(model, plan, keep, embeds=True)
    check_weights("embed", model, checkpoint, random)
    host_model = target.build(
        checkpoint=checkpoint, image_size=image_size, device=default_device(device)
    )
    with progress_bars() as progress, warnings.catch_warnings(record=True) as faults:
        warnings.simplefilter("always")
        features, _ = embed(host_model, images, out, batch=batch, progress=progress)
    for fault in faults:
        typer.echo(str(fault.message), err=True)
    typer.echo(
        f"{label_of(host_model)}: features {list(features.shape)} of {len(features)} pictures in "
        f"{out / 'features.npy'}, their names in {out / 'names.json'}"
    )
