"""Tiny data and run configs for LAVIS' runner."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from PIL import Image

WORDS = ["red", "green", "blue", "dark", "pale", "round", "flat", "warm"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
OTHERS = ["a", "and", "thing", "on", "the", "table", "by", "door"]


def write_data(folder: Path) -> Path:
    """Write 16 training pairs, 6 held-out ones and a vocabulary."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 16), ("held_out", 6)):
        rows: list[dict[str, Any]] = []
        for i in range(count):
            name = f"{split}_{i}.png"
            Image.fromarray(generator.integers(0, 255, (64, 64, 3), np.uint8)).save(folder / name)
            text = f"a {WORDS[i % 8]} and {WORDS[i // 2 % 8]} thing on the table by the door"
            caption = text if split == "train" else [text]
            rows.append({"image": name, "image_id": i, "caption": caption})
        (folder / f"{split}.json").write_text(json.dumps(rows))
    (folder / "vocab.txt").write_text("\n".join(SPECIAL + OTHERS + WORDS))
    return folder


def model_section(arch: str, data: Path, **more: Any) -> dict[str, Any]:
    """Model section of a tiny model of any family that pre-trains."""
    if arch.endswith("clip"):
        vision = {"image_size": 64, "layers": 12, "width": 64, "patch_size": 16}
        text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
        sizes = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}
        return {"arch": arch, "model_type": "ViT-B-16", "pretrained": "", "clip": sizes, **more}
    return {
        "arch": arch,
        "model_type": "base",
        "image_size": 64,
        "tokenizer": str(data / "vocab.txt"),
        "init": "random",
        "vit": {"width": 32, "depth": 12, "heads": 2, "patch_size": 16},
        "bert": {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64},
        "queue_size": 32,
        "max_txt_len": 16,
        **more,
    }


def write_config(
    path: Path, model: dict[str, Any], data: Path, dataset: str = "elip_pairs", **run: Any
) -> Path:
    """Write a run config of two epochs of two steps; LAVIS' own data sets want more keys."""
    files = {"train": data / "train.json", "val": data / "held_out.json"}
    files["test"] = files["val"]
    annotations = {split: {"storage": [str(path)]} for split, path in files.items()}
    kinds = {"train": "blip_image_train", "eval": "blip_image_eval"}
    section: dict[str, Any] = {
        "build_info": {"annotations": annotations},
        "vis_processor": {k: {"name": name, "image_size": 64} for k, name in kinds.items()},
    }
    if dataset != "elip_pairs":
        for lists in annotations.values():
            lists["url"] = lists["storage"]
        section["build_info"]["images"] = {"storage": str(data)}
        section["text_processor"] = {kind: {"name": "blip_caption"} for kind in kinds}
    config = {
        "model": model,
        "datasets": {dataset: section},
        "run": {
            "runner": "elip_runner",
            "task": "retrieval",
            "lr_sched": "linear_warmup_cosine_lr",
            "init_lr": 1e-3,
            "min_lr": 1e-5,
            "weight_decay": 0.05,
            "max_epoch": 2,
            "batch_size_train": 8,
            "batch_size_eval": 8,
            "num_workers": 0,
            "seed": 1,
            "output_dir": str(path.parent / "output"),
            "evaluate": False,
            "train_splits": ["train"],
            "test_splits": ["test"],
            "device": "cpu",
            "world_size": 1,
            "dist_url": "env://",
            "distributed": False,
            **run,
        },
    }
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    return path
