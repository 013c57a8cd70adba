"""LAVIS' pre-training models as subjects of measurement, built offline with random weights."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import torch
from lavis.models.vit import Attention
from omegaconf import OmegaConf
from torch import Tensor, nn

from elip_plugin.api import find_handle
from elip_plugin.data.vocab import write_vocab
from elip_plugin.errors import UnknownModelError
from elip_plugin.hosts.lavis.models import ARCHS
from elip_plugin.hosts.lavis.names import PREFIX
from elip_plugin.hosts.lavis.towers import _attention
from elip_plugin.measure.subject import Passes, Subject
from elip_plugin.patching.swap import Patched

MODELS = ("albef_pretrain", "blip_pretrain")
CAPTION = "a photograph of a cat on a sofa"


class FusedAttention(Patched, Attention):
    """LAVIS' attention in one fused call: the fair reference, as pruned towers have it too."""

    replaces: ClassVar[type[nn.Module]] = Attention

    def forward(self, x: Tensor, register_hook: bool = False) -> Tensor:
        """Attend.

        Args:
            x: Tokens [B, T, D].
            register_hook: As in LAVIS.

        Returns:
            Tokens [B, T, D].
        """
        return super().forward(x, register_hook) if register_hook else _attention(self, x)


def fuse(model: nn.Module) -> None:
    """Give all attention of a model's towers the fused form.

    Args:
        model: An unpruned model.
    """
    for module in model.modules():
        if type(module) is Attention:
            module.__class__ = FusedAttention


def subject(
    name: str,
    *,
    batch: int,
    image_size: int | None,
    device: str,
    precision: Callable[[], AbstractContextManager[Any]],
) -> Subject:
    """Make a pre-training model of LAVIS' base size and a batch of random pairs.

    Args:
        name: "elip_albef_pretrain" or "elip_blip_pretrain", with or without prefix.
        batch: Pairs per batch, B.
        image_size: Pixels of a side; None for the arch's own.
        device: Where to run.
        precision: Makes the context in which passes run.

    Returns:
        The subject; "full" is LAVIS' own attention, "fused" the reference.

    Raises:
        UnknownModelError: If the name is not one of these.
    """
    base = name.removeprefix(PREFIX)
    if base not in MODELS:
        raise UnknownModelError(
            f"{name} cannot be measured: of LAVIS' archs, {list(MODELS)} can; the others cost "
            "what these towers cost"
        )
    torch.manual_seed(0)
    model = _model(base, image_size).to(device).train()
    size = round(model.visual_encoder.patch_embed.num_patches**0.5) * 16
    samples = {
        "image": torch.randn(batch, 3, size, size, device=device),
        "text_input": [CAPTION] * batch,
        "epoch": 0,
        "iters": 0,
        "num_iters_per_epoch": 1,
    }
    guide = torch.randn(batch, model.visual_encoder.embed_dim, device=device)

    def passes(module: nn.Module) -> Passes:
        target: Any = module

        def step() -> Tensor:
            with precision():
                loss: Tensor = target(samples)["loss"]
                return loss

        def tower() -> Tensor:
            encoder, images = target.visual_encoder, samples["image"]
            with precision():
                if not isinstance(target, Patched):
                    return encoder.forward_features(images).float().square().mean()
                with find_handle(encoder).guide(guide):
                    return encoder.forward_features(images).float().square().mean()

        def inference() -> Tensor:
            target.eval()
            with precision():
                features: Tensor = target.visual_encoder.forward_features(samples["image"])
            target.train()
            return features

        return {"tower": tower, "step": step, "inference": inference}

    return Subject(base, model, passes, {"fused": fuse}, size, ("tome",))


def _model(base: str, image_size: int | None) -> Any:
    twin = ARCHS[base]
    with TemporaryDirectory() as folder:
        vocabulary = Path(folder) / "vocab.txt"
        write_vocab([CAPTION], vocabulary)
        section = {
            "tokenizer": str(vocabulary),
            "init": {"vision": "random", "text": "random"},
            # A batch must divide the queue, whatever the batch.
            "queue_size": 65536,
            "bert": {"vocab_size": 30524},
            **({} if image_size is None else {"image_size": image_size}),
        }
        cfg = OmegaConf.merge(OmegaConf.load(twin.default_config_path("base")).model, section)
        model = twin.from_config(cfg)
    find_handle(model).remove()
    return model
