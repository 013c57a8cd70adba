"""What can be exported: plans and reducers, towers, runtimes, sizes of the batch; as a page.

python tests/export/matrix.py         # writes research/exporting.md
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
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

PAGE = ROOT / "research" / "exporting.md"
HEADING = "## What can be exported\n"
DEPTH = 6
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
    config["vision_cfg"]["layers"] = DEPTH
    return open_clip.CLIP(**config), lambda model, x: model.encode_image(x)


def _siglip() -> tuple[nn.Module, Callable[[Any, Tensor], Tensor]]:
    from family import build

    vision = {
        "timm_model_name": "vit_base_patch16_siglip_224", "timm_pool": "map",
        "timm_proj": "none", "image_size": 64,
    }  # fmt: skip
    config = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": {}}
    model = build(config, img_size=64, depth=DEPTH, patch_size=8)
    return model, lambda model, x: model.encode_image(x)


def _transformers() -> tuple[nn.Module, Callable[[Any, Tensor], Tensor]]:
    from hosts.transformers.tiny import make

    from elip_plugin.hosts.transformers.guide import feature_of

    model = make("clip", num_hidden_layers=DEPTH)
    return model, lambda model, x: feature_of(model.get_image_features(pixel_values=x))


def _dinov2() -> tuple[nn.Module, Callable[[Any, Tensor], Tensor]]:
    from hosts.anyvit.vits import VISION
    from transformers import Dinov2Config, Dinov2Model

    model = Dinov2Model(Dinov2Config(**{**VISION, "num_hidden_layers": DEPTH}))
    return model, lambda model, x: model(x).pooler_output


def _narrow(name: str, **timm: Any) -> tuple[nn.Module, Callable[[Any, Tensor], Tensor]]:
    import open_clip
    from family import build, narrow

    config = narrow(open_clip.get_model_config(name))
    config["vision_cfg"]["image_size"] = 64
    return build(config, **timm), lambda model, x: model.encode_image(x)


TOWERS: Mapping[str, Callable[[], Any]] = {
    "OpenCLIP": _open_clip,
    "timm (SigLIP)": _siglip,
    "transformers (CLIP)": _transformers,
}
"""Towers that every plan is tried on."""

FURTHER: Mapping[str, Callable[[], Any]] = {
    "EVA-02": partial(_narrow, "EVA02-B-16", img_size=64, patch_size=8, depth=DEPTH),
    "CoCa": partial(_narrow, "coca_ViT-B-32"),
    "MobileCLIP-B": partial(_narrow, "MobileCLIP-B", img_size=64, depth=DEPTH),
    "any ViT (DINOv2)": _dinov2,
}
"""Towers that differ from these in their blocks, their pooling or their stem, or were found."""

FURTHER_PLAN = {"preset": "embed"}


def plans() -> dict[str, dict[str, Any]]:
    """List what is tried: every preset and every reducer, pruned by the image where it can be."""
    image: dict[str, Any] = {"eval_mode": "image"}
    by_preset = {f"`{name}`": {"preset": name, **image} for name in PRESETS}
    by_reducer = {}
    for name, reducer in reducers().items():
        by_image = not reducer.text_alone
        config: dict[str, Any] = {"reducer": name, "eval_mode": "image" if by_image else "full"}
        # Other stages than a preset's own would repeat it.
        if name not in {PRESETS[preset].reducer.name for preset in PRESETS}:
            by_reducer[f"`{name}` (reducer)"] = config
    return {**by_preset, **by_reducer}


def make(tower: str, config: dict[str, Any]) -> Small:
    """Build a pruned model, in evaluation mode."""
    torch.manual_seed(0)
    model, encode = {**TOWERS, **FURTHER}[tower]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        elip_plugin.apply(model.eval(), config)
    made = Small(tower, model, (8, 8), (0.5,) * 3, (0.5,) * 3)
    made.encode = encode
    return made


def run_by(runtime: str, module: nn.Module, program: Any) -> Callable[[Tensor], Tensor]:
    """Return what runs a tower by a runtime."""
    if runtime == "compile":
        torch._dynamo.reset()
        # Traced and split as for any backend, then run by torch: a compiler takes minutes for each.
        compiled = torch.compile(module, backend="aot_eager")

        def run(images: Tensor) -> Tensor:
            torch._dynamo.maybe_mark_dynamic(images, 0)
            features: Tensor = compiled(images)
            return features

        return run
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"image{FORMATS[runtime].suffix}"
        FORMATS[runtime].write(program, path, ("images",))
        return FORMATS[runtime].open(path, None)


def row(tower: str, config: dict[str, Any], runtimes: Sequence[str] = RUNTIMES) -> Any:
    """Return why a tower is refused, or differences by runtime and batch, of the largest."""
    try:
        made = make(tower, config)
    except ElipError as error:
        return str(error)
    reason = why_not(made)
    if reason:
        return reason
    module, found = ImageTower(made), {}
    try:
        program = capture(module, (made.example_batch(2)[0],))
    except ElipError as error:
        return str(error)
    for runtime in runtimes:
        run = run_by(runtime, module, program)
        differences = []
        for batch in BATCHES:
            images = torch.randn(batch, 3, 64, 64, generator=torch.Generator().manual_seed(batch))
            with torch.no_grad():
                expected = module(images)
                difference = (expected - run(images)).abs().max() / expected.abs().max()
                differences.append(float(difference))
        found[runtime] = differences
    return found


def lines() -> Iterator[str]:
    """Make the end of the page, line by line."""
    yield HEADING
    yield (
        "Made by `tests/export/matrix.py`: small towers of 64 patches and six blocks with random\n"
        "weights. Each cell has the largest difference of a feature from eager torch, as a share\n"
        f"of the largest feature, for batches of {', '.join(map(str, BATCHES))}. `compile` is\n"
        '`torch.compile` (backend "aot_eager"), `torch` a file of `torch.export`.\n'
        f"Torch {torch.__version__.partition('+')[0]}.\n"
    )
    names = " | ".join(f"`{name}`" for name in RUNTIMES)
    yield f"| plan | tower | {names} |\n|---|---|{'---|' * len(RUNTIMES)}"
    reasons: dict[str, None] = {}
    for plan, config in plans().items():
        for tower in TOWERS:
            found = row(tower, config)
            print(plan, tower, found, file=sys.stderr, flush=True)
            if isinstance(found, str):
                reasons[f"- {plan}: {found}."] = None
                continue
            yield _line(plan, tower, found)
    for tower in FURTHER:
        yield _line("`embed`", tower, row(tower, FURTHER_PLAN))
    yield "\nRefused, on each of these towers:\n"
    yield from reasons
    yield (
        "\nA model of LAVIS is refused as well: its preprocessing is code named by a yaml file,\n"
        "for which other programs have no format."
    )


def _line(plan: str, tower: str, found: Mapping[str, Sequence[float]]) -> str:
    cells = " | ".join(" / ".join(f"{d:.0e}" for d in found[r]) for r in RUNTIMES)
    return f"| {plan} | {tower} | {cells} |"


def main() -> None:
    made = "\n".join(lines()) + "\n"
    written = PAGE.read_text() if PAGE.is_file() else ""
    PAGE.write_text(written.partition(HEADING)[0] + made)


if __name__ == "__main__":
    main()
