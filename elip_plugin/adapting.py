"""Adapt a pruned tower to its own unpruned features: distillation by itself, without labels.

The unpruned model teaches the pruned one: for each picture, as it is and mirrored, the cosine of
their features, plain and after the mean over pictures is taken off. What results embeds at the
pruned cost into an index of unpruned embeddings.

Shapes: B pictures, E features.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elip_plugin.api import find_handle
from elip_plugin.errors import ConfigError, DataError
from elip_plugin.export.manifest import hash_weights
from elip_plugin.files import replacing, writable
from elip_plugin.hosts.base import HostModel

RATE, BETAS = 4e-6, (0.9, 0.999)
WARMUP, FEWEST_RISING = 0.05, 10
"""Share of the steps in which the learning rate rises, and the fewest of them: Adam's first steps
are as long as the rate, however small the gradient is."""

LARGEST_NORM = 1.0
"""Longer gradients are cut to this length."""

SAVED_EVERY = 50
"""Steps after which the state is written."""

Encode = Callable[[HostModel, Tensor], Sequence[Tensor]]
"""Gives the features [B, E] that are taught, one or several, of images."""


def embedding(host_model: HostModel, images: Tensor) -> tuple[Tensor, ...]:
    """Return what an index holds of images: the model's features, else its class token [B, E]."""
    features = host_model.encode_image(images)
    return (features if features.ndim == 2 else features[:, 0],)


def refuse_bare_model(given: object, function: str) -> None:
    """Refuse a model alone where what `elip_plugin.create` makes is needed."""
    if isinstance(given, nn.Module):
        raise ConfigError(
            f"{function} takes what elip_plugin.create makes, got a {type(given).__name__} alone: "
            "create it by its name, and put a model of yours, such as one with adapters, into its "
            "attribute `model`"
        )


def adapt(
    host_model: HostModel,
    count: int,
    load: Callable[[Sequence[int]], Tensor],
    *,
    steps: int,
    batch: int = 32,
    rate: float = RATE,
    bf16: bool = False,
    seed: int = 0,
    state: Path | None = None,
    encode: Encode = embedding,
    progress: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Adapt the weights of a pruned model in place; those that require a gradient learn.

    Args:
        host_model: A model whose plan prunes in evaluation by the image (`eval_mode: image`), such
            as `elip_plugin.create(name, "embed", checkpoint=...)`; with adapters (peft) in
            `host_model.model`, only these learn.
        count: Number of pictures.
        load: Returns images [B, 3, height, width] of places below `count`, in their order, the same
            ones each time.
        steps: Steps of the optimizer (AdamW without weight decay).
        batch: Pictures per step.
        rate: Largest learning rate; it falls to 0 along a cosine. Trained weights lose by a rate
            that suits training: on DINOv2 3e-5 undid what the first steps had mended.
        bf16: Whether both forwards run under autocast in bfloat16.
        seed: Of the order of the pictures.
        state: File of weights and optimizer, from which the same call goes on; deleted at the end.
            None keeps none.
        encode: What is taught; by default the embedding.
        progress: Told the steps that are done, and the loss.

    Raises:
        ConfigError: If a model is given alone, the plan does not prune in evaluation, no weight
            requires a gradient, or a number means nothing.
        DataError: If the loss is no number, or `state` is of another call.

    Example:
        >>> made = elip_plugin.create("elip-embed-ViT-B-32", checkpoint="weights.pt")
        >>> elip_plugin.adapt(made, len(images), lambda places: images[places], steps=100)
    """
    refuse_bare_model(host_model, "adapt")
    if steps < 1 or batch < 1 or not 0 < rate < 1:
        raise ConfigError(
            f"adapting needs steps and batch of 1 or more and a rate between 0 and 1, got steps "
            f"{steps}, batch {batch}, rate {rate:g}"
        )
    config = find_handle(host_model.model).config
    if config.eval_mode != "image":
        raise ConfigError(
            f"this plan has eval_mode {config.eval_mode!r}: a tower is adapted to how it embeds, "
            "pruned by the image; take the plan embed, or set eval_mode to image"
        )
    teacher = replace(host_model, model=copy.deepcopy(host_model.model))
    find_handle(teacher.model).remove()
    teacher.model.eval().requires_grad_(False)
    model = host_model.model.eval()  # no dropout: its unpruned self is the aim
    learning = [p for p in model.parameters() if p.requires_grad]
    if not learning:
        raise ConfigError(
            "no weight of this model requires a gradient, so nothing would be learned: call "
            "model.requires_grad_(True), or add adapters"
        )
    optimizer = torch.optim.AdamW(learning, lr=rate, betas=BETAS, weight_decay=0.0)
    key = {
        "steps": steps, "batch": batch, "rate": rate, "bf16": bf16, "seed": seed, "count": count,
        "mirrored": True, "plan": repr(config), "weights": hash_weights(model.state_dict()),
    }  # fmt: skip
    first, means = _read_state(state, key, model, optimizer)
    device = next(model.parameters()).device
    known: dict[int, list[Tensor]] = {}  # what is taught of each picture, which is computed once
    places = _order(2 * count, batch, seed)  # from `count` on, of mirrored pictures
    for step in range(steps):
        chosen = next(places)
        if step < first:
            continue
        images = load([place % count for place in chosen]).to(device)
        mirrored = torch.tensor([place >= count for place in chosen], device=device)
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        new = [i for i, place in enumerate(chosen) if place not in known]
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            if new:
                with torch.no_grad():
                    features = [each.float().cpu() for each in encode(teacher, images[new])]
                features = [each.clone() for each in features]  # a class token is a view of all
                for i, *row in zip(new, *features, strict=True):
                    known[chosen[i]] = row
            found = [each.float() for each in encode(host_model, images)]
        rows = zip(*(known[place] for place in chosen), strict=True)
        wanted = [torch.stack(each).to(device) for each in rows]
        means = _updated(means, wanted, step)
        loss = torch.zeros((), device=device)
        for x, y, mean in zip(found, wanted, means, strict=True):
            loss = loss + _distance(x, y) + _distance(x - mean, y - mean)
        if not torch.isfinite(loss):
            raise DataError(
                f"the loss is {loss.item()} at step {step}: are these trained weights? A smaller "
                "rate may help"
            )
        for group in optimizer.param_groups:
            group["lr"] = rate * _share(step, steps)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(learning, LARGEST_NORM)
        optimizer.step()
        progress(step + 1, float(loss.detach()))
        if state is not None and (step + 1) % SAVED_EVERY == 0:
            _write_state(state, key, model, optimizer, step + 1, means)
    if state is not None:
        state.unlink(missing_ok=True)


def _distance(x: Tensor, y: Tensor) -> Tensor:
    return (1 - F.cosine_similarity(x, y)).mean()


def _updated(means: list[Tensor], wanted: Sequence[Tensor], step: int) -> list[Tensor]:
    """Return the means of what was taught so far, [E] each."""
    if step == 0:
        return [each.mean(dim=0) for each in wanted]
    weight = max(1 / (step + 1), 0.01)
    return [mean.lerp(each.mean(dim=0), weight) for mean, each in zip(means, wanted, strict=True)]


def _share(step: int, steps: int) -> float:
    """Return the share of the learning rate at a step: a linear rise, then a cosine."""
    rise = min(1.0, (step + 1) / max(FEWEST_RISING, WARMUP * steps))
    return rise * 0.5 * (1 + math.cos(math.pi * step / steps))


def _order(count: int, batch: int, seed: int) -> Iterator[list[int]]:
    """Yield the places of each step's pictures: all of them by chance, again and again."""
    generator = torch.Generator().manual_seed(seed)
    left: list[int] = []
    while True:
        while len(left) < batch:
            left += torch.randperm(count, generator=generator).tolist()
        yield left[:batch]
        left = left[batch:]


def _read_state(
    path: Path | None, key: dict[str, Any], model: Any, optimizer: Any
) -> tuple[int, list[Tensor]]:
    if path is None or not path.exists():
        return 0, []
    try:
        saved = torch.load(path, weights_only=True)
        same = saved["key"] == key
    except Exception as error:  # of as many kinds as there are broken files
        raise DataError(f"{path} cannot be read ({error}): delete it, and start again") from error
    if not same:
        raise DataError(
            f"{path} is the state of another call ({saved['key']}): repeat that one, or delete it"
        )
    model.load_state_dict(saved["weights"])
    optimizer.load_state_dict(saved["optimizer"])
    return saved["step"], saved["means"]


def _write_state(
    path: Path, key: dict[str, Any], model: Any, optimizer: Any, step: int, means: list[Tensor]
) -> None:
    saved = {
        "key": key, "step": step, "means": means, "weights": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }  # fmt: skip
    with writable(path), replacing(path) as unfinished:
        torch.save(saved, unfinished)
