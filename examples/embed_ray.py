"""Embed pictures on several workers by Ray Data, on one machine or on a cluster.

pip install 'ray[data]'
python examples/embed_ray.py --model ViT-B-32 --pretrained openai --images photos --out index

Ray starts the workers, hands them batches, and starts a worker that dies again, with the batch that
it had. Each worker has a model of its own. Writes `features.npy` [N, E] of length 1 and
`names.json`, in the order of the names.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch

import elip_plugin
from elip_plugin.measure.preview import image_only
from elip_plugin.pictures import Item, find_items


class Embedder:
    """A worker's model."""

    def __init__(
        self, items: list[Item], model: str, pretrained: str, plan: str, die_once: Path | None
    ) -> None:
        self.items = items
        config = image_only(elip_plugin.ElipConfig.from_mapping(plan))
        self.host_model = elip_plugin.create(model, config, checkpoint=pretrained)
        self.die_once = die_once

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Embed a batch of pictures; one that cannot be read gets no numbers, and the reason."""
        if self.die_once is not None:
            _die_once(self.die_once)
        items = [self.items[place] for place in batch["place"]]
        images, faults = [], []
        for item in items:
            try:
                images.append(self.host_model.preprocess(item.read()))
                faults.append("")
            except Exception as error:  # Pillow's readers raise nearly anything on broken files
                faults.append(f"{type(error).__name__}: {error}")
        features = iter(())
        if images:
            with torch.inference_mode():
                made = self.host_model.encode_image(torch.stack(images))
            features = iter(torch.nn.functional.normalize(made.float(), dim=1).numpy())
        rows = [np.zeros(0, np.float32) if why else next(features) for why in faults]
        return {
            "name": [item.name for item in items],
            "features": [row.tolist() for row in rows],
            "fault": faults,
            "process": [os.getpid()] * len(rows),
        }


def _die_once(flag: Path) -> None:
    """Kill this worker, unless one was killed before."""
    try:
        flag.touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def embed(args: argparse.Namespace, items: list[Item]) -> list[dict[str, Any]]:
    """Embed on all workers; rows in the order of the names."""
    import ray

    places = [{"place": i} for i in range(len(items))]
    # As many blocks as batches: what a worker that dies loses is one.
    data = ray.data.from_items(places, override_num_blocks=-(-len(items) // args.batch))
    embedded = data.map_batches(
        Embedder,
        fn_constructor_args=(items, args.model, args.pretrained, args.plan, args.die_once),
        batch_size=args.batch,
        compute=ray.data.ActorPoolStrategy(size=args.workers),
    )
    return sorted(embedded.iter_rows(), key=lambda row: str(row["name"]))


def main() -> None:
    """Embed, and write what was made."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="an OpenCLIP name, or hf:FOLDER")
    parser.add_argument("--pretrained", required=True, help="a tag of OpenCLIP's, or a checkpoint")
    parser.add_argument("--plan", default="embed", help="a preset, or a file of elip plan -o")
    parser.add_argument("--images", type=Path, nargs="+", required=True, help="folders or shards")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--die-once", type=Path, help=argparse.SUPPRESS)  # for the test
    args = parser.parse_args()

    import ray

    items = find_items([path.resolve() for path in args.images])
    args.out.mkdir(parents=True, exist_ok=True)
    # On one machine: room for the workers, however few cores it has. A cluster has its own.
    cpus = None if os.environ.get("RAY_ADDRESS") else args.workers + 1
    ray.init(num_cpus=cpus)
    rows = embed(args, items)
    good = [row for row in rows if not row["fault"]]
    for row in rows:
        if row["fault"]:
            print(f"left out: {row['name']}: {row['fault']}")
    np.save(args.out / "features.npy", np.array([row["features"] for row in good], np.float32))
    (args.out / "names.json").write_text(json.dumps([row["name"] for row in good], indent=0))
    workers = len({row["process"] for row in rows})
    print(f"{len(good)} pictures by the plan {args.plan}, {workers} workers: {args.out}")


if __name__ == "__main__":
    try:
        main()
    except elip_plugin.ElipError as error:
        raise SystemExit(f"error: {error}") from None
