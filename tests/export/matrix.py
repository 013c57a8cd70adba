"""What can be exported: plans and reducers, towers, runtimes, sizes of the batch; as a page.

    python tests/export/matrix.py         # writes docs/exporting_matrix.md
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import elip_plugin  # noqa: E402
from elip_plugin.config import PRESETS  # noqa: E402
from elip_plugin.errors import ElipError  # noqa: E402
from elip_plugin.export.formats import FORMATS  # noqa: E402
from elip_plugin.export.parity import BATCHES  # noqa: E402
from elip_plugin.export.tower import ImageTower, capture, why_not  # noqa: E402
from elip_plugin.hosts.base import HostModel  # noqa: E402
from elip_plugin.reducers import reducers  # noqa: E402

PAGE = ROOT / "docs" / "exporting_matrix.md"
RUNTIMES = ("compile", "torch", "onnx", "openvino")


class Small(HostModel):
    """A small model and how its image tower is run."""

    encode: Callable[[Any, Tensor], Tensor]

    def preprocess(self, picture: Any) -> Tensor:
        raise NotImplementedError

    def tokenize(self, texts: Sequence[str]) -> Any:
        raise NotImplementedError

    def example_batch(self, batch: int) -> tuple[Tensor, Any]:
        return torch.randn(batch, 3, 64, 64, generator=torch.Generator().manual_seed(1)), None

    def encode_image(self, images: Tensor) -> Tensor:
        return self.encode(self.model, images)

    def encode_text(self, tokens: Any) -> Tensor:
        raise NotImplementedError

    def loss(self, images: Tensor, tokens: Any) -> Tensor:
        raise NotImplementedError


def _open_clip() -> tuple[nn.Module, Callable[[Any, Tensor], Tensor]]:
    import json

    import open_clip

    config = json.loads((ROOT / "tests" / "models" / "ViT-tiny-6.json").read_text())
    return open_clip.CLIP(**config), lambda model, x: model.encode_image(x)


def _siglip() -> tuple[nn.Module, Callable[[Any, Tensor], Tensor]]:
    from family import build

    vision = {
        "timm_model_name": "vit_base_patch16_siglip_224", "timm_pool": "map",
        "timm_proj": "none", "image_size": 64,
    }  # fmt: skip
    config = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": {}}
    model = build(config, img_size=64, depth=6, patch_size=8)
    return model, lambda model, x: model.encode_image(x)


def _transformers() -> tuple[nn.Module, Callable[[Any, Tensor], Tensor]]:
    from hosts.transformers.tiny import make

    from elip_plugin.hosts.transformers.guide import feature_of

    model = make("clip", num_hidden_layers=6)
    return model, lambda model, x: feature_of(model.get_image_features(pixel_values=x))


TOWERS: Mapping[str, Callable[[], Any]] = {
    "OpenCLIP": _open_clip,
    "timm (SigLIP)": _siglip,
    "transformers (CLIP)": _transformers,
}


def plans() -> dict[str, dict[str, Any]]:
    """List what is tried: every preset and every reducer, pruned by the image where it can be."""
    image: dict[str, Any] = {"eval_mode": "image"}
    by_preset = {f"preset `{name}`": {"preset": name, **image} for name in PRESETS}
    by_reducer = {}
    for name, reducer in reducers().items():
        mode = reducer.alone_eval_mode()
        config: dict[str, Any] = {"reducer": name, "eval_mode": mode}
        # Other stages than a preset's own would repeat it.
        if name not in {PRESETS[preset].reducer for preset in PRESETS}:
            by_reducer[f"reducer `{name}`"] = config
    return {**by_preset, **by_reducer}


def make(tower: str, config: dict[str, Any]) -> Small:
    """Build a pruned model, in evaluation mode."""
    torch.manual_seed(0)
    model, encode = TOWERS[tower]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        elip_plugin.apply(model.eval(), config)
    made = Small(tower, model, (8, 8), (0.5,) * 3, (0.5,) * 3)
    made.encode = encode
    return made


def run_by(runtime: str, made: Small) -> Callable[[Tensor], Tensor]:
    """Return what runs a tower by a runtime."""
    module = ImageTower(made)
    if runtime == "compile":
        torch._dynamo.reset()
        compiled: Callable[[Tensor], Tensor] = torch.compile(module, dynamic=True)
        return compiled
    example = made.example_batch(2)[0]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"image{FORMATS[runtime].suffix}"
        FORMATS[runtime].write(capture(module, (example,)), path, ("images",))
        return FORMATS[runtime].open(path, None)


def row(tower: str, config: dict[str, Any], runtimes: Sequence[str] = RUNTIMES) -> Any:
    """Return the reason why a tower is refused, or differences by runtime and batch."""
    try:
        made = make(tower, config)
    except ElipError as error:
        return str(error)
    reason = why_not(made)
    if reason:
        return reason
    module, found = ImageTower(made), {}
    for runtime in runtimes:
        run = run_by(runtime, made)
        differences = []
        for batch in BATCHES:
            images = torch.randn(batch, 3, 64, 64, generator=torch.Generator().manual_seed(batch))
            with torch.no_grad():
                differences.append(float((module(images) - run(images)).abs().max()))
        found[runtime] = differences
    return found


def lines() -> Iterator[str]:
    """Make the page, line by line."""
    yield "# Which towers can be exported\n"
    yield (
        "Made by `tests/export/matrix.py`: small towers of 64 patches and six blocks with random "
        "weights. Each cell has the largest difference of a feature from eager torch for batches "
        f"of {', '.join(map(str, BATCHES))}; features are up to 3. `compile` is `torch.compile`, "
        "`torch` a file of `torch.export`. "
        f"Torch {torch.__version__.partition('+')[0]}.\n"
    )
    names = " | ".join(RUNTIMES)
    yield f"| plan | tower | {names} |\n|---|---|{'---|' * len(RUNTIMES)}"
    reasons: dict[str, list[str]] = {}
    for plan, config in plans().items():
        for tower in TOWERS:
            found = row(tower, config)
            print(plan, tower, found, file=sys.stderr, flush=True)
            if isinstance(found, str):
                reasons.setdefault(f"{plan}: {found}", []).append(tower)
                continue
            cells = " | ".join(" / ".join(f"{d:.0e}" for d in found[r]) for r in RUNTIMES)
            yield f"| {plan} | {tower} | {cells} |"
    yield "\nRefused, on each of these towers:\n"
    for reason in reasons:
        yield f"- {reason}."


if __name__ == "__main__":
    PAGE.write_text("\n".join(lines()) + "\n")
