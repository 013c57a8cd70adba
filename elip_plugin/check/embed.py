"""Embed pictures and texts, each once for its weights and plan."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elip_plugin.api import apply, find_handle
from elip_plugin.check.store import Rows, Store
from elip_plugin.config import ElipConfig
from elip_plugin.errors import DataError, UnsupportedModelError
from elip_plugin.export.manifest import hash_weights
from elip_plugin.hosts.base import HostModel
from elip_plugin.pictures import Item, strict_decoding

READERS = 4
"""Threads that read pictures."""

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
            return self._store(config).fill(
                [item.key for item in items],
                lambda places: self._encode([items[i] for i in places], places),
                lambda done: self.progress(f"embedding, {what}", done, len(items)),
            )

    def texts(self, texts: Sequence[str]) -> Rows:
        """Embed texts.

        Args:
            texts: The texts, each once.

        Returns:
            Features of length 1 [n, E].
        """

        def encode(places: Sequence[int]) -> tuple[Rows, dict[int, str]]:
            tokens = _to(self.host_model.tokenize([texts[i] for i in places]), self.device)
            with torch.inference_mode():
                features = self.host_model.encode_text(tokens)
            return _unit(features, "a text"), {}

        keys = [hashlib.sha256(text.encode()).hexdigest()[:32] for text in texts]
        rows, _ = Store(self.folder / self._key("texts")).fill(
            keys, encode, lambda done: self.progress("embedding texts", done, len(texts))
        )
        return rows

    def check_texts(self) -> None:
        """Refuse a model whose texts and pictures have no common space."""
        with torch.inference_mode():
            images, tokens = self.host_model.example_batch(1)
            pictures = self.host_model.encode_image(images)
            texts = self.host_model.encode_text(tokens)
        if pictures.ndim != 2 or texts.shape != pictures.shape:
            raise UnsupportedModelError(
                f"{self.host_model.name} has no features by which texts and pictures are compared "
                f"(pictures {tuple(pictures.shape)}, texts {tuple(texts.shape)}): leave --texts out"
            )

    def _encode(self, items: Sequence[Item], places: Sequence[int]) -> tuple[Rows, dict[int, str]]:
        images, faults = read_all(items, self.host_model.preprocess)
        made = []
        for start in range(0, len(images), self.batch):
            batch = torch.stack(images[start : start + self.batch]).to(self.device, self._dtype)
            with torch.inference_mode():
                features = self.host_model.encode_image(batch)
            # Tokens of a model without a feature: its class token, which no plan removes.
            made.append(_unit(features if features.ndim == 2 else features[:, 0], "a picture"))
        rows = np.concatenate(made) if made else np.zeros((0, 0), np.float32)
        return rows, {places[i]: why for i, why in faults.items()}

    @contextmanager
    def _pruned(self, config: ElipConfig | None) -> Iterator[None]:
        handle = find_handle(self.host_model.model)
        if config is not None and handle.config != config:
            handle.remove()
            handle = apply(self.host_model.model, config)
        with handle.disabled() if config is None else nullcontext():
            yield

    def _store(self, config: ElipConfig | None) -> Store:
        plan = "full" if config is None else json.dumps(config.to_mapping(), sort_keys=True)
        return Store(self.folder / self._key(plan))

    def _key(self, plan: str) -> str:
        from importlib import import_module

        from PIL import Image

        # What the preprocessing makes of a picture says what it is, whatever the host.
        made = self.host_model.preprocess(
            Image.linear_gradient("L").convert("RGB").resize((97, 61))
        )
        seen = hashlib.sha256(made.float().cpu().numpy().tobytes()).hexdigest()
        version = import_module("elip_plugin").__version__
        parts = (self._weights, plan, seen, version, torch.__version__, self.device.type)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def read_all(
    items: Sequence[Item], prepare: Callable[[Any], Any]
) -> tuple[list[Any], dict[int, str]]:
    """Read pictures and prepare each.

    Args:
        items: The pictures.
        prepare: Is given a picture (Pillow, RGB).

    Returns:
        What it made of those that could be read; what is wrong with the others, by place.
    """

    def one(item: Item) -> tuple[Any, str]:
        try:
            return prepare(item.read()), ""
        except Exception as error:  # Pillow's readers raise nearly anything on broken files
            return None, f"{type(error).__name__}: {error}"

    with strict_decoding(), ThreadPoolExecutor(READERS) as readers:
        made = list(readers.map(one, items))
    faults = {i: why for i, (_, why) in enumerate(made) if why}
    return [value for value, why in made if not why], faults


def _unit(features: Tensor, what: str) -> Rows:
    rows: Rows = features.float().cpu().numpy().copy()
    if not np.isfinite(rows).all():
        raise DataError(f"the model's features of {what} are not finite: are these its weights?")
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return rows


def _short(config: ElipConfig) -> str:
    return f"{config.reducer.name} {', '.join(f'{stage.keep:g}' for stage in config.stages)}"


def _to(tokens: Any, device: torch.device) -> Any:
    if isinstance(tokens, Tensor):
        return tokens.to(device)
    if isinstance(tokens, dict):
        return {name: _to(value, device) for name, value in tokens.items()}
    return tokens
