"""Features of a tower, kept in files: the class token, and the mean of the patches' tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor

import elip_plugin
from benchmarks.pretrained.plans import Row

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Features = dict[str, Tensor]


def load_tower(folder: Path) -> Any:
    """Load an image model of transformers, which has a class token, in evaluation mode."""
    import transformers

    return transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()


def features(
    tower: Any, pixels: np.ndarray, part: np.ndarray, row: Row, kept: Path, batch: int = 16
) -> Features:
    """Return features of photographs, read from a file where they were computed before.

    Args:
        tower: From `load_tower`; left as it was.
        pixels: All photographs.
        part: Indices of those that are asked for.
        row: What to prune.
        kept: Folder of the files.
        batch: Photographs at a time.

    Returns:
        `cls` and `mean` [len(part), D], float32.
    """
    path = kept / f"{row.key}-{part[0]}-{len(part)}.npz"
    if not path.exists():
        handle = elip_plugin.apply(tower, row.config) if row.config is not None else None
        torch.manual_seed(0)
        try:
            found = [
                _encode(tower, pixels[part[start : start + batch]], row)
                for start in track(range(0, len(part), batch), row.key)
            ]
        finally:
            if handle is not None:
                handle.remove()
        kept.mkdir(parents=True, exist_ok=True)
        arrays = {n: torch.cat([f[n] for f in found]).numpy() for n in ("cls", "mean")}
        np.savez(path.with_suffix(".part.npz"), cls=arrays["cls"], mean=arrays["mean"])
        path.with_suffix(".part.npz").rename(path)
    with np.load(path) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def to_images(pixels: np.ndarray, side: int) -> Tensor:
    """Turn bytes [B, height, width, 3] into images [B, 3, side, side] as DINOv2 takes them."""
    images = torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float() / 255
    if images.shape[-1] != side:
        images = F.interpolate(images, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
    return (images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def _encode(tower: Any, pixels: np.ndarray, row: Row) -> Features:
    images = to_images(pixels, row.side)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        tokens = tower(pixel_values=images).last_hidden_state.float()
    return {"cls": tokens[:, 0], "mean": tokens[:, 1:].mean(1)}


def text_features(folder: Path, captions: list[list[str]], kept: Path) -> Tensor:
    """Return the mean of the tokens of each caption [N, 5, D] by a text model of transformers."""
    path = kept / f"texts-{len(captions)}.npy"
    if not path.exists():
        import transformers

        model = transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        texts = [text for five in captions for text in five]
        found = []
        for start in track(range(0, len(texts), 256), "captions"):
            part = texts[start : start + 256]
            tokens = tokenizer(
                part, padding=True, truncation=True, max_length=40, return_tensors="pt"
            )
            with torch.no_grad():
                states = model(**tokens).last_hidden_state
            mask = tokens["attention_mask"].unsqueeze(-1)
            found.append((states * mask).sum(1) / mask.sum(1))
        kept.mkdir(parents=True, exist_ok=True)
        np.save(path, torch.cat(found).reshape(len(captions), 5, -1).numpy())
    return torch.from_numpy(np.load(path))
