"""A small ALBEF or BLIP of LAVIS' pre-training classes, with all their losses."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from typing import Any

import lavis.models  # noqa: F401  (fills LAVIS' registry)
import torch
import torch.nn.functional as F
from lavis.common.registry import registry
from omegaconf import OmegaConf
from torch import Tensor

import elip_plugin
from benchmarks.quality.pairs import Pairs
from benchmarks.quality.recipe import SIDE, Recipe

HEAD = 32


class PretrainModel:
    """An ALBEF or BLIP to train and score; see `benchmarks.quality.models.StudyModel`.

    Args:
        recipe: Sizes of the model; ALBEF's text towers always have 6 and 6 blocks.
        train: The training split.
    """

    def __init__(self, recipe: Recipe, train: Pairs) -> None:
        self.captions = list(train.captions)
        # The class that elip_plugin registers builds itself from small configs, offline.
        cls = registry.get_model_class(f"elip_{recipe.family}_pretrain")
        heads = recipe.width // HEAD
        bert = {
            "hidden_size": recipe.width,
            "num_attention_heads": heads,
            "intermediate_size": 4 * recipe.width,
        }
        if recipe.family == "blip":
            bert["num_hidden_layers"] = recipe.text_depth
        section = {
            "tokenizer": str(train.vocabulary),
            "vit": {"width": recipe.width, "depth": recipe.depth, "heads": heads,
                    "patch_size": recipe.patch},
            "image_size": SIDE,
            "queue_size": recipe.batch,
            "bert": bert,
        }  # fmt: skip
        cfg = OmegaConf.merge(OmegaConf.load(cls.default_config_path("openmoji")).model, section)
        with redirect_stdout(io.StringIO()):  # BLIP prints every tied weight
            self.model: Any = cls.from_config(cfg)
        elip_plugin.find_handle(self.model).remove()

    def loss(self, images: Tensor, which: Tensor, done: float) -> Tensor:
        """Compute the sum of LAVIS' losses.

        Args:
            images: Images [B, 3, 64, 64].
            which: Indices of the pairs in the training split [B].
            done: Share of the training that is done.

        Returns:
            The loss.

        Raises:
            ValueError: If the images are smaller than the model's.
        """
        if images.shape[-1] != SIDE:
            raise ValueError("LAVIS' towers take one image size: leave 'coarse' out")
        samples = {
            "image": images,
            "text_input": [self.captions[i] for i in which.tolist()],
            # LAVIS ramps its distillation up with these, over the steps of a first epoch.
            "epoch": 0,
            "iters": round(1000 * done),
            "num_iters_per_epoch": 1000,
        }
        loss: Tensor = self.model(samples)["loss"]
        return loss

    @torch.no_grad()
    def guide(self, which: Tensor) -> Tensor:
        """Encode captions of the training split: hidden states at [CLS], [B, width]."""
        return self._text([self.captions[i] for i in which.tolist()])

    @torch.no_grad()
    def features(self, images: Tensor, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Encode images and captions for retrieval."""
        self.model.eval()
        image = self.model.visual_encoder.forward_features(images)[:, 0]
        text = self._text(captions)
        return (
            F.normalize(self.model.vision_proj(image), dim=-1),
            F.normalize(self.model.text_proj(text), dim=-1),
        )

    def scale(self) -> float:
        """Return the factor on cosines, one over LAVIS' temperature."""
        return 1 / float(self.model.temp.detach())

    def _text(self, captions: list[str]) -> Tensor:
        tokens = self.model.tokenizer(
            captions,
            padding="max_length",
            truncation=True,
            max_length=self.model.max_txt_len,
            return_tensors="pt",
        )
        encoder = getattr(self.model.text_encoder, "bert", self.model.text_encoder)
        out = encoder(
            tokens.input_ids, attention_mask=tokens.attention_mask, return_dict=True, mode="text"
        )
        token: Tensor = out.last_hidden_state[:, 0]
        return token
