"""Embed pictures and texts, each once for its weights and plan."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from elip_plugin.adapting import embedding, refuse_bare_model
from elip_plugin.api import find_handle
from elip_plugin.check.store import Rows, Store
from elip_plugin.config import ElipConfig
from elip_plugin.errors import DataError
from elip_plugin.export.manifest import hash_weights
from elip_plugin.files import make_folder, replacing, writable, write_text
from elip_plugin.hosts.base import HostModel
from elip_plugin.label import RANDOM
from elip_plugin.measure.preview import image_only
from elip_plugin.patching.install import find_pruner
from elip_plugin.pictures import Item, find_items, strict_decoding

READERS, AHEAD = 4, 2
"""Threads that read pictures, and batches that are read before they are wanted."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


class Embedder:
    """Embeds pictures and texts by one model, and keeps what it has made.

    Args:
        host_model: The model, pruned by any plan.
        folder: Where embeddings are kept.
        batch: Pictures per forward.
        progress: Told how far it is.
    """

    def __init__(self, host_model: HostModel, folder: Path, batch: int, progress: Progress) -> None:
        self.host_model, self.folder, self.batch = host_model, folder, batch
        self.progress = progress
        self._weights = hash_weights(host_model.model.state_dict())
        parameter = next(host_model.model.parameters())
        self.device, self._dtype = parameter.device, parameter.dtype

    def pictures(
        self, items: Sequence[Item], config: ElipConfig | None
    ) -> tuple[Rows, dict[int, str]]:
        """Embed pictures.

        Args:
            items: The pictures.
            config: The plan; None for all tokens.

        Returns:
            Features of length 1 [n, E] of those that can be read; what is wrong with the others,
            by place.
        """
        what = "unpruned" if config is None else f"pruned to {_short(config)}"
        with self._pruned(config):
            return fill(
                self._store(config),
                [item.key for item in items],
                read_ahead(items, self.host_model.preprocess, self.batch),
                self._encode,
                lambda done: self.progress(f"embedding, {what}", done, len(items)),
            )

    def texts(self, texts: Sequence[str]) -> Rows:
        """Embed texts.

        Args:
            texts: The texts, each once.

        Returns:
            Features of length 1 [n, E].
        """
        rows = []
        for start in range(0, len(texts), self.batch):
            tokens = self.host_model.tokenize(texts[start : start + self.batch])
            with torch.inference_mode():
                tokens = tree_map_only(Tensor, lambda each: each.to(self.device), tokens)
                features = self.host_model.encode_text(tokens)
            rows.append(_unit(features, "a text"))
            self.progress("embedding texts", start + len(rows[-1]), len(texts))
        return np.concatenate(rows)

    def _encode(self, images: list[Tensor]) -> Rows:
        batch = torch.stack(images).to(self.device, self._dtype)
        with torch.inference_mode():
            (features,) = embedding(self.host_model, batch)
        return _unit(features, "a picture")

    @contextmanager
    def _pruned(self, config: ElipConfig | None) -> Iterator[None]:
        handle = find_handle(self.host_model.model)
        if config is not None and handle.config != config:
            self.host_model.prune(config)
        with handle.disabled() if config is None else nullcontext():
            yield

    def _store(self, config: ElipConfig | None) -> Store:
        from importlib import import_module

        from PIL import Image

        # What the preprocessing makes of a picture says what it is, whatever the host.
        prepared = self.host_model.preprocess(
            Image.linear_gradient("L").convert("RGB").resize((97, 61))
        )
        seen = hashlib.sha256(prepared.float().cpu().numpy().tobytes()).hexdigest()
        plan = "full" if config is None else json.dumps(config.to_mapping(), sort_keys=True)
        version = import_module("elip_plugin").__version__
        parts = (self._weights, plan, seen, version, torch.__version__, self.device.type)
        return Store(self.folder / hashlib.sha256(repr(parts).encode()).hexdigest()[:16])


Batch = tuple[list[int], list[Any], dict[int, str]]
"""Places, what was made for each of them, and what is wrong with others, by place."""


def fill(
    store: Store,
    keys: Sequence[str],
    batches: Callable[[Sequence[int]], Iterator[Batch]],
    encode: Callable[[list[Any]], Rows],
    progress: Callable[[int], None],
) -> tuple[Rows, dict[int, str]]:
    """Compute the rows that a store lacks, and return all; a stop loses one batch at most.

    Args:
        store: The store.
        keys: What is wanted, each once.
        batches: Yields what is at some places, batch by batch.
        encode: Makes rows [n, E] of a batch.
        progress: Called with the number of keys that are done.

    Returns:
        The rows [n, E] of all that has no fault, and the faults by place, which are not stored.
    """
    missing = np.flatnonzero(store.places(keys) < 0).tolist()
    faults: dict[int, str] = {}
    done = len(keys) - len(missing)
    progress(done)
    if missing:
        with store.adding() as add:
            for places, values, bad in batches(missing):
                if values:
                    add([keys[i] for i in places], encode(values))
                faults |= bad
                done += len(places) + len(bad)
                progress(done)
    return store.rows([key for i, key in enumerate(keys) if i not in faults]), faults


def embed(
    host_model: HostModel,
    pictures: Sequence[str | Path],
    out: str | Path,
    *,
    batch: int = 32,
    progress: Progress = lambda what, done, total: None,
) -> tuple[Rows, list[str]]:
    """Embed folders of pictures by a model's plan, into files of a folder.

    Args:
        host_model: What `elip_plugin.create` makes, with trained weights.
        pictures: Pictures, folders of pictures or of .tar shards at any depth, or shards.
        out: Gets `features.npy` [N, E], of length 1, `names.json` with the N names, and a cache,
            from which the same call goes on; other weights and plans are kept apart there.
        batch: Pictures per forward.
        progress: Told what is done, how much, and of how much.

    Returns:
        The features and the names of the pictures that can be read.

    Raises:
        DataError: If there is no picture, or features are not finite.
        ConfigError: If a model is given alone, or the plan chooses by a text.

    Warns:
        UserWarning: If nothing gave the model weights, or a picture cannot be read.

    Example:
        >>> model = elip_plugin.create("elip-embed-ViT-B-32", checkpoint="weights.pt")
        >>> features, names = elip_plugin.embed(model, ["photos"], "index")
    """
    refuse_bare_model(host_model, "embed")
    if host_model.weights == RANDOM:
        warnings.warn(
            f"{host_model.name} was made without a checkpoint: its features are those of random "
            "weights, unless you loaded some yourself",
            stacklevel=2,
        )
    out, items = Path(out), find_items([Path(path) for path in pictures])
    config = image_only(find_pruner(host_model.model).config)
    make_folder(out)
    rows, faults = Embedder(host_model, out / "cache", batch, progress).pictures(items, config)
    names = [item.name for i, item in enumerate(items) if i not in faults]
    for name, why in ((items[i].name, why) for i, why in faults.items()):
        warnings.warn(f"left out: {name}: {why}", stacklevel=2)
    features = out / "features.npy"
    with writable(features), replacing(features) as unfinished, unfinished.open("wb") as file:
        np.save(file, rows)
    write_text(out / "names.json", json.dumps(names, indent=0, ensure_ascii=False) + "\n")
    return rows, names


def read_ahead(
    items: Sequence[Item], prepare: Callable[[Any], Any], batch: int
) -> Callable[[Sequence[int]], Iterator[Batch]]:
    """Return what reads and prepares pictures by threads, the next batch while one is in use.

    Args:
        items: The pictures.
        prepare: Is given a picture (Pillow, RGB).
        batch: How many come at a time.

    Returns:
        A function of places, which yields batches.
    """

    def one(place: int) -> tuple[Any, str]:
        try:
            return prepare(items[place].read()), ""
        except Exception as error:  # Pillow's readers raise nearly anything on broken files
            return None, f"{type(error).__name__}: {error}"

    def batches(places: Sequence[int]) -> Iterator[Batch]:
        parts = [places[start : start + batch] for start in range(0, len(places), batch)]
        with strict_decoding(), ThreadPoolExecutor(READERS) as readers:
            ahead = deque[Any]()
            for part in [*parts, *[[]] * AHEAD]:
                ahead.append((part, [readers.submit(one, place) for place in part]))
                if len(ahead) > AHEAD:
                    some, futures = ahead.popleft()
                    made = [(place, *future.result()) for place, future in zip(some, futures)]
                    good = [(place, value) for place, value, why in made if not why]
                    bad = {place: why for place, _, why in made if why}
                    if made:
                        yield [place for place, _ in good], [value for _, value in good], bad

    return batches


def _unit(features: Tensor, what: str) -> Rows:
    rows: Rows = features.float().cpu().numpy().copy()
    if not np.isfinite(rows).all():
        raise DataError(f"the model's features of {what} are not finite: are these its weights?")
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return rows


def _short(config: ElipConfig) -> str:
    return f"{config.reducer.name} {', '.join(f'{stage.keep:g}' for stage in config.stages)}"
