"""Embed a folder of pictures into a `.npy`, with their names, at about half the cost.

python examples/embed_folder.py --model ViT-B-32 --pretrained openai --images photos --out index
python examples/embed_folder.py --model hf:FOLDER --pretrained FOLDER --images photos --out index
python examples/embed_folder.py --model ViT-B-32 --export EXPORTED --images photos --out index

Writes `features.npy` [N, E] of length 1, `names.json` and, for some of the pictures, their nearest
neighbors as a picture. A run that is stopped goes on where it was. Is it safe for these pictures?
`elip check` says so.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.progress import Progress
from torch import Tensor

import elip_plugin
from elip_plugin.check.embed import fill, read_ahead
from elip_plugin.check.neighbors import nearest_in, similarities
from elip_plugin.check.store import Rows, Store
from elip_plugin.pictures import Item, find_items

SIDE, QUERIES, NEIGHBORS = 96, 8, 6


def by_torch(args: argparse.Namespace, progress: Any) -> tuple[Rows, list[str]]:
    """Embed by torch: an OpenCLIP name, or `hf:` and a folder of transformers."""
    host_model = elip_plugin.create(args.model, args.plan, checkpoint=args.pretrained)
    return elip_plugin.embed(host_model, args.images, args.out, batch=args.batch, progress=progress)


def by_export(args: argparse.Namespace, progress: Any) -> tuple[Rows, list[str]]:
    """Embed by the runtime that `elip export` wrote for; the model gives the preprocessing."""
    from importlib import import_module

    encode: Callable[[Tensor], Tensor] = import_module("elip_plugin.export").load(args.export)
    preprocess = elip_plugin.create(args.model, device="meta").preprocess
    items = find_items(args.images)

    def run(images: list[Tensor]) -> Rows:
        rows: Rows = torch.nn.functional.normalize(encode(torch.stack(images)), dim=1).numpy()
        return rows

    # Another export is kept apart: by the time of its files.
    state = [
        f"{file.resolve()} {file.stat().st_mtime_ns}" for file in sorted(args.export.iterdir())
    ]
    cache = hashlib.sha256("\n".join(state).encode()).hexdigest()[:16]
    features, faults = fill(
        Store(args.out / "cache" / f"export-{cache}"),
        [item.key for item in items],
        read_ahead(items, preprocess, args.batch),
        run,
        lambda done: progress("embedding", done, len(items)),
    )
    for i, why in faults.items():
        warnings.warn(f"left out: {items[i].name}: {why}", stacklevel=2)
    names = [item.name for i, item in enumerate(items) if i not in faults]
    np.save(args.out / "features.npy", features)
    (args.out / "names.json").write_text(json.dumps(names, indent=0))
    return features, names


def contact_sheet(items: list[Item], features: Rows) -> Image.Image:
    """Draw pictures at even distances, each with its nearest neighbors beside it."""
    queries = np.unique(np.linspace(0, len(items) - 1, QUERIES).astype(int))
    count = min(NEIGHBORS, len(items) - 1)
    sheet = Image.new("RGB", (SIDE * (count + 1) + 16, SIDE * len(queries)), "white")
    for row, query in enumerate(queries):
        similar = similarities(features, features, slice(query, query + 1))
        found = nearest_in(similar, count)[0].tolist() if count else []
        for column, place in enumerate([query, *found]):
            image = items[place].read()
            image.thumbnail((SIDE - 4, SIDE - 4))
            sheet.paste(image, (SIDE * column + 16 * (column > 0), SIDE * row))
    return sheet


def main() -> None:
    """Embed, and write what was made."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="an OpenCLIP name, or hf:FOLDER")
    parser.add_argument(
        "--pretrained", default="", help="a tag of OpenCLIP's, a checkpoint, or FOLDER"
    )
    parser.add_argument("--plan", default="embed", help="a preset, or a file of elip plan -o")
    parser.add_argument("--export", type=Path, help="a folder of elip export, to run that")
    parser.add_argument("--images", type=Path, nargs="+", required=True, help="folders or shards")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=32)
    args = parser.parse_args()
    if not (args.pretrained or args.export):
        parser.error("give --pretrained or --export: the model's weights would be random")

    args.out.mkdir(parents=True, exist_ok=True)
    with Progress() as bars:
        bar = bars.add_task("embedding")
        embed = by_export if args.export else by_torch
        features, names = embed(
            args, lambda what, done, total: bars.update(bar, completed=done, total=total)
        )
    if names:
        good = [item for item in find_items(args.images) if item.name in set(names)]
        contact_sheet(good, features).save(args.out / "neighbors.png")
    by = args.export or f"the plan {args.plan}"
    print(f"{features.shape[0]} pictures by {by}, {features.shape[1]} numbers each: {args.out}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("\nstopped; the same command goes on") from None
    except elip_plugin.ElipError as error:
        raise SystemExit(f"error: {error}") from None
