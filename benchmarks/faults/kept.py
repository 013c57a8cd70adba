"""Kept answers: what a release makes of small models, which later code must make, too.

`python -m benchmarks.faults keep HOST ...` writes `tests/kept/VERSION/HOST.npz`: a model's weights,
images and texts, and for each reducer and preset the features, a number for each gradient, and the
plan. `tests/test_kept.py` computes them again.

Weights and images are stored in half precision and in bytes, of which all is computed in double
precision; no file is executed when it is read.
"""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import elip_plugin
from benchmarks.faults.results import ROOT, environment
from elip_plugin.reducers import find_reducer, reducers

KEPT = ROOT / "tests" / "kept"
WIDTH, DEPTH, SIDE, PATCH = 16, 6, 48, 8
TEXT = {"width": 16, "heads": 2, "layers": 1, "context_length": 8, "vocab_size": 64}
PRESETS = ("paper", "fast", "half", "lowres", "embed", "question")
BATCH = 2
DRAWN = ("random", "gumbel", "cluster")
"""Reducers that draw."""

Outputs = dict[str, Tensor]


@dataclass(frozen=True)
class Host:
    """A small model of a host.

    Attributes:
        package: What it needs.
        minimum: The oldest version of that.
        make: Makes the model, with any weights.
        run: Runs it on images [B, 3, S, S] and texts [B, L], or a guide [B, D]; returns features.
    """

    package: str
    minimum: str | None
    make: Callable[[], nn.Module]
    run: Callable[[Any, Any, Tensor, Tensor], Outputs]


def _open_clip() -> nn.Module:
    vision = {"image_size": SIDE, "patch_size": PATCH, "layers": DEPTH, "width": WIDTH}
    config = {
        "embed_dim": 16,
        "vision_cfg": {**vision, "head_width": 8, "mlp_ratio": 2.0},
        "text_cfg": TEXT,
    }
    model: nn.Module = import_module("open_clip").CLIP(**config, output_dict=True)
    return model


def _transformers() -> nn.Module:
    hf = import_module("transformers")
    common = {"num_attention_heads": 2, "intermediate_size": 2 * WIDTH}
    vision = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "image_size": SIDE}
    text = {"hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 64, "eos_token_id": 63}
    config = hf.CLIPConfig(
        vision_config={**common, **vision, "patch_size": PATCH},
        text_config={**common, **text, "max_position_embeddings": 8, "bos_token_id": 62},
        projection_dim=16,
    )
    model: nn.Module = hf.CLIPModel(config)
    return model


def _timm() -> nn.Module:
    sizes = {"img_size": SIDE, "patch_size": PATCH, "depth": DEPTH, "embed_dim": WIDTH}
    make = import_module("timm.models.vision_transformer").VisionTransformer
    model: nn.Module = make(**sizes, num_heads=2, mlp_ratio=2.0, num_classes=16)
    return model


def _torchvision() -> nn.Module:
    sizes = {"image_size": SIDE, "patch_size": PATCH, "num_layers": DEPTH, "hidden_dim": WIDTH}
    make = import_module("torchvision.models.vision_transformer").VisionTransformer
    model: nn.Module = make(**sizes, num_heads=2, mlp_dim=2 * WIDTH, num_classes=16)
    return model


def _lavis() -> nn.Module:
    sizes = {"img_size": SIDE, "patch_size": PATCH, "depth": DEPTH, "embed_dim": WIDTH}
    make = import_module("lavis.models.vit").VisionTransformer
    model: nn.Module = make(**sizes, num_heads=2, mlp_ratio=2.0)
    return model


def _run_pairs(model: Any, handle: Any, images: Tensor, texts: Tensor) -> Outputs:
    out = model(images, texts)
    return {name: out[name] for name in ("image_features", "text_features")}


def _run_named_pairs(model: Any, handle: Any, images: Tensor, texts: Tensor) -> Outputs:
    out = model(pixel_values=images, input_ids=texts)
    return {"image_features": out.image_embeds, "text_features": out.text_embeds}


def _run_guided(model: Any, handle: Any, images: Tensor, texts: Tensor) -> Outputs:
    with ExitStack() as stack:
        if handle is not None and handle.config.text_weight:
            stack.enter_context(handle.guide(torch.linspace(-1, 1, BATCH * WIDTH).view(BATCH, -1)))
        out = model(images)
    return {"features": out if out.ndim == 2 else out.mean(dim=1)}


HOSTS = {
    "open_clip": Host("open_clip", None, _open_clip, _run_pairs),
    "transformers": Host("transformers", "4.57", _transformers, _run_named_pairs),
    "timm": Host("timm.layers", None, _timm, _run_guided),
    "torchvision": Host("torchvision", None, _torchvision, _run_guided),
    "lavis": Host("lavis", None, _lavis, _run_guided),
}


def cases(host: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """List what prunes a host's model: each reducer, presets, schedules, stages with an end."""
    for name in reducers():
        ahead = 2 if find_reducer(name).looks_ahead else 1
        stages = [
            {"block": 1, "lookahead": ahead, "keep": 0.6},
            {"block": 4, "lookahead": 1, "keep": 0.5},
        ]
        if name == "cluster":
            stages = [{"block": 0, "lookahead": 1, "keep": 0.5}]
        yield name, {"reducer": name} if name == "pool" else {"reducer": name, "stages": stages}
    if HOSTS[host].run is _run_guided and host != "lavis":
        return  # a description that is found costs more than what it is used for
    for preset in PRESETS:
        yield f"preset {preset}", {"preset": preset}
    until = [{"block": 1, "lookahead": 1, "keep": 0.5, "until": 4}]
    yield "until", {"stages": until, "text_weight": 0.0}
    dropped = [{"block": 2, "lookahead": 1, "keep": 0.5}]
    yield "without merging", {"stages": dropped, "merge": False, "text_weight": 0.0}


def answer(host: Host, model: nn.Module, config: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """Compute a training step of a model by a configuration.

    Args:
        host: The host.
        model: Its model, in double precision; as it was, afterwards.
        config: What prunes it; None for no pruning.
        inputs: Images and texts.

    Returns:
        The features, a number for each parameter's gradient, and the plan's tokens, in one row.
    """
    handle = None if config is None else elip_plugin.apply(model, config)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # in which transformers 4 makes its mask
    try:
        model.train().zero_grad(set_to_none=True)
        torch.manual_seed(0)
        out = host.run(model, handle, inputs["images"], inputs["texts"])
        torch.stack([_weigh(features) for features in out.values()]).sum().backward()  # type: ignore[no-untyped-call]
        named = sorted(model.named_parameters())
        gradients = [_weigh(p.grad) for _, p in named if p.grad is not None]
        plan = [] if handle is None else [*map(float, handle.plan.tokens)]
        features = [out[name].detach().flatten() for name in sorted(out)]
        return torch.cat([*features, torch.stack(gradients), torch.tensor(plan)])
    finally:
        torch.set_default_dtype(before)
        if handle is not None:
            handle.remove()


def _weigh(values: Tensor) -> Tensor:
    """Sum up numbers with another weight for each."""
    return values.flatten() @ torch.arange(values.numel()).cos().to(values.dtype)


def keep(host: str) -> dict[str, Any]:
    """Compute all answers of this version for a host.

    Args:
        host: The host's name.

    Returns:
        Arrays by name: what its file holds.
    """
    torch.manual_seed(0)
    model = HOSTS[host].make()
    weights = []
    for name, value in _floats(model).items():
        drawn_weights = torch.randn_like(value) * (0.2 if value.ndim > 1 else 0.1)
        is_norm = value.ndim == 1 and name.endswith("weight")
        weights.append((drawn_weights + is_norm).half().flatten())
    arrays: dict[str, Any] = {"weights": torch.cat(weights).numpy()}
    images = torch.randint(0, 256, (BATCH, 3, SIDE, SIDE), dtype=torch.uint8)
    texts = torch.randint(1, 60, (BATCH, 8))
    texts[:, -1] = 63  # the end of a text
    arrays["images"], arrays["texts"] = images.numpy(), texts.numpy()
    arrays["drawn"] = drawn().numpy()
    shapes = {name: [*value.shape] for name, value in _floats(model).items()}
    model, inputs = rebuild(host, arrays, shapes)
    configs: dict[str, Any] = {"unpruned": None}
    for case, config in cases(host):
        try:
            handle = elip_plugin.apply(model, config)
        except elip_plugin.ElipError:
            continue  # this reducer or preset is not for this host
        configs[case] = handle.config.to_mapping()
        handle.remove()
    for case, config in configs.items():
        arrays[f"out.{case}"] = answer(HOSTS[host], model, config, inputs).numpy()
    about = {"host": host, "weights": shapes, "configs": configs, "environment": environment()}
    arrays["about"] = np.array(json.dumps(about))
    return arrays


def drawn() -> Tensor:
    """Return random numbers, by which a torch that draws others is known."""
    torch.manual_seed(0)
    return torch.rand(BATCH, 64, dtype=torch.float64)


def _floats(model: nn.Module) -> dict[str, Tensor]:
    return {name: v for name, v in model.state_dict().items() if v.is_floating_point()}


def rebuild(
    host: str, arrays: Mapping[str, Any], shapes: Mapping[str, list[int]]
) -> tuple[nn.Module, dict[str, Tensor]]:
    """Make a host's model and inputs in double precision of what its file holds.

    Args:
        host: The host's name.
        arrays: Arrays by name.
        shapes: Of the weights that are in `arrays["weights"]`, one after another.

    Returns:
        The model, and images [B, 3, S, S] and texts [B, L] by these names.
    """
    model = HOSTS[host].make().double()
    parts = (
        torch.from_numpy(arrays["weights"])
        .double()
        .split_with_sizes([*map(math.prod, shapes.values())])
    )
    state = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts)}
    missing = [name for name, _ in model.named_parameters() if name not in state]
    if missing:
        raise KeyError(f"{host}: no weights are kept for {missing}")
    model.load_state_dict({**model.state_dict(), **state})
    images = torch.from_numpy(arrays["images"]).double() / 64 - 2
    return model, {"images": images, "texts": torch.from_numpy(arrays["texts"])}


def changes() -> str:
    """Return what git names as changed or not committed, but for kept answers."""
    command = ["git", "status", "--porcelain", "--", ".", ":!tests/kept"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


def write(hosts: Sequence[str], version: str = elip_plugin.__version__) -> list[Path]:
    """Write the answers of this version for some hosts.

    Args:
        hosts: Their names.
        version: Names the folder.

    Returns:
        The files.

    Raises:
        SystemExit: If the checkout was changed, or there are answers of this version and host.
    """
    folder = KEPT / version
    if changed := changes():
        raise SystemExit(
            f"this checkout has changes, so it is no version:\n{changed}commit them, then keep"
        )
    if there := [name for name in hosts if (folder / f"{name}.npz").exists()]:
        raise SystemExit(
            f"{folder} has answers for {', '.join(there)}, which are never written again: a new "
            "version has its own folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    made = {folder / f"{name}.npz": keep(name) for name in hosts}
    for path, arrays in made.items():
        np.savez_compressed(path, **arrays)  # of numbers alone: nothing is pickled
    return [*made]
