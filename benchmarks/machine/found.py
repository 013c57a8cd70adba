"""`python -m benchmarks.machine.found [MODEL ...]`: what is done with other libraries' models.

Each is built untrained, pruned by `embed`, checked, exported to ONNX and run. The table goes into
research/anyvit.md.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

import elip_plugin
from benchmarks.tables import fill, markdown
from elip_plugin.errors import ElipError
from elip_plugin.export import export
from elip_plugin.hosts.anyvit.check import check

PAGE = Path(__file__).parents[2] / "research" / "anyvit.md"
TINY = {
    "hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768, "num_hidden_layers": 6,
}  # fmt: skip
SHAPES = {  # widths, heads and depths of DINOv3's S, B and L
    "S": {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536},
    "B": {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
    "L": {
        "hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096,
        "num_hidden_layers": 24,
    },
}  # fmt: skip


@contextmanager
def of_transformers(kind: str, **options: Any) -> Iterator[str]:
    """Write the config of a model of transformers into a folder; yield its name."""
    import transformers

    config = getattr(transformers, f"{kind}Config")
    with tempfile.TemporaryDirectory() as folder:
        config(**options).save_pretrained(folder)
        yield f"hf:{folder}"


def vision(**options: Any) -> dict[str, Any]:
    """Return the options of a model of images and texts whose towers are small."""
    text = {**TINY, "num_hidden_layers": 2}
    return {"vision_config": {**TINY, **options}, "text_config": text}


@contextmanager
def named(name: str) -> Iterator[str]:
    """Yield a name that needs no folder."""
    yield name


Model = Callable[[], Any]
MODELS: dict[str, Model] = {
    "DINOv2": lambda: of_transformers("Dinov2", **TINY, image_size=518, patch_size=14),
    "DINOv2 with registers": lambda: of_transformers("Dinov2WithRegisters", **TINY),
    **{
        f"DINOv3 ViT-{letter}": partial(
            of_transformers, "DINOv3ViT", num_register_tokens=4, **shape
        )
        for letter, shape in SHAPES.items()
    },
    "ViT": lambda: of_transformers("ViT", **TINY),
    "DeiT": lambda: of_transformers("DeiT", **TINY),
    "BEiT": lambda: of_transformers("Beit", **TINY),
    "AIMv2": lambda: of_transformers("Aimv2Vision", **TINY),
    "I-JEPA": lambda: of_transformers("IJepa", **TINY),
    "CLIP": lambda: of_transformers("CLIP", **vision()),
    "SigLIP": lambda: of_transformers("Siglip", **vision()),
    "SigLIP 2, NaFlex": lambda: of_transformers("Siglip2", **vision()),
    "OwlViT": lambda: of_transformers("OwlViT", **vision()),
    "MetaCLIP 2": lambda: of_transformers("MetaClip2", **vision()),
    "ViTMAE": lambda: of_transformers("ViTMAE", **TINY),
    "DPT": lambda: of_transformers("DPT", **TINY),
    "Pixtral": lambda: of_transformers("PixtralVision", **TINY),
    "Swin": lambda: of_transformers("Swin", image_size=224),
    "timm `vit_tiny_patch16_224`": lambda: named("timm:vit_tiny_patch16_224"),
    "timm `deit3_small_patch16_224`": lambda: named("timm:deit3_small_patch16_224"),
    "timm `vit_small_patch14_reg4_dinov2`": lambda: named("timm:vit_small_patch14_reg4_dinov2"),
    "timm `vit_small_patch16_dinov3`": lambda: named("timm:vit_small_patch16_dinov3"),
    "timm `vit_base_patch16_siglip_224`": lambda: named("timm:vit_base_patch16_siglip_224"),
    "timm `eva02_small_patch14_224`": lambda: named("timm:eva02_small_patch14_224"),
    "timm `naflexvit_base_patch16_gap`": lambda: named("timm:naflexvit_base_patch16_gap"),
    "torchvision `vit_b_16`": lambda: named("torchvision:vit_b_16"),
    "torchvision `resnet50`": lambda: named("torchvision:resnet50"),
}
"""What the table calls models, of transformers where nothing is said, and their names."""

HEADER = ("model", "tokens", "difference of its blocks", "operations", "exported", "embedded")
SIDE = 224


def row_of(label: str, model: Model) -> tuple[str, ...]:
    """Try everything on a model; return its row, or the error."""
    try:
        with model() as name, tempfile.TemporaryDirectory() as folder:
            made = elip_plugin.create(name, "embed", image_size=SIDE)
            handle = elip_plugin.find_handle(made.model)
            plan = handle.plan
            images, _ = made.example_batch(2)
            with torch.no_grad():
                features = made.encode_image(images)
            manifest = export(made, Path(folder) / "exported")
            parity = manifest["towers"]["image"]["parity"]
            handle.remove()
            tower = made.describe().tower
            return (
                label,
                f"{tower.prefix} + {tower.num_patches}",
                f"{check(tower):.1e}".replace("0.0e+00", "0"),
                f"{plan.forward_cost(tower.shape.width):.2f}",
                f"{max(parity['differences'].values()) / parity['largest']:.1e}",
                str(features.shape[1]),
            )
    except ElipError as error:
        reason = " ".join(str(error).split()).replace("|", "/")
        return (label, "refused: " + reason.replace(name, label), "", "", "", "")


def main(labels: Sequence[str]) -> None:
    """Make rows, all or those of some models, and write each into the page's table."""
    warnings.simplefilter("ignore")
    for label in labels or MODELS:
        torch.manual_seed(0)
        row = row_of(label, MODELS[label])
        print(*row, sep=" | ", flush=True)
        written = [
            line[2:-2].split(" | ") for line in PAGE.read_text().splitlines() if "| " in line
        ]
        rows = {cells[0]: cells for cells in [*written, row]}
        ordered = [rows[label] for label in MODELS if label in rows]
        PAGE.write_text(fill(PAGE.read_text(), {"found": markdown(HEADER, ordered)}))


if __name__ == "__main__":
    main(sys.argv[1:])
