"""A small ALBEF or BLIP of LAVIS' classes, to train and score."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from omegaconf import OmegaConf
from torch import Tensor

from elip_plugin.api import find_handle
from elip_plugin.data.vocab import write_vocab
from elip_plugin.errors import UnsupportedModelError
from elip_plugin.hosts.lavis.models import ARCHS, SMALL
from elip_plugin.hosts.lavis.scores import embed_image, embed_text, text_token
from elip_plugin.quality.recipe import SIDE, Recipe

HEAD = 32


class PretrainTrial:
    """LAVIS' pre-training model with all its losses, from the small config of `lavis_configs`.

    Args:
        recipe: Sizes of the model; ALBEF's text towers always have 6 and 6 blocks.
        captions: Those of the training split.
        others: Those of the held-out split; their words are not needed.
    """

    def __init__(self, recipe: Recipe, captions: list[str], others: list[str]) -> None:
        self.captions = captions
        twin = ARCHS[f"{recipe.family}_pretrain"]
        heads = recipe.width // HEAD
        bert = {
            "hidden_size": recipe.width,
            "num_attention_heads": heads,
            "intermediate_size": 4 * recipe.width,
        }
        if recipe.family == "blip":
            bert["num_hidden_layers"] = recipe.text_depth
        with TemporaryDirectory() as folder:
            vocabulary = Path(folder) / "vocab.txt"
            write_vocab(captions, vocabulary)
            section = {
                "tokenizer": str(vocabulary),
                "vit": {"width": recipe.width, "depth": recipe.depth, "heads": heads,
                        "patch_size": recipe.patch},
                "image_size": SIDE,
                "queue_size": recipe.batch,
                "bert": bert,
            }  # fmt: skip
            cfg = OmegaConf.merge(OmegaConf.load(twin.default_config_path(SMALL)).model, section)
            with redirect_stdout(io.StringIO()):  # BLIP names every tied weight
                self.model = twin.from_config(cfg)
        find_handle(self.model).remove()

    def loss(self, images: Tensor, which: Tensor, progress: float) -> Tensor:
        """Run the training forward; see `elip_plugin.quality.trial.Trial`.

        Args:
            images: Images [B, 3, 64, 64].
            which: The pairs' places in the training split [B].
            progress: Share of the training that is done.

        Returns:
            The sum of LAVIS' losses.

        Raises:
            UnsupportedModelError: If the images are smaller than the model's.
        """
        if images.shape[-1] != SIDE:
            raise UnsupportedModelError("LAVIS' towers take one image size: leave 'coarse' out")
        samples = {
            "image": images,
            "text_input": [self.captions[i] for i in which.tolist()],
            # What LAVIS warms its distillation up by, in steps of a first epoch.
            "epoch": 0,
            "iters": round(1000 * progress),
            "num_iters_per_epoch": 1000,
        }
        loss: Tensor = self.model(samples)["loss"]
        return loss

    def guide(self, which: Tensor) -> Tensor:
        """Encode captions of the training split.

        Args:
            which: Their places [B].

        Returns:
            Hidden states at [CLS], [B, width], without gradient.
        """
        with torch.no_grad():
            return text_token(self.model, [self.captions[i] for i in which.tolist()])

    def features(self, images: Tensor, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Encode images and captions for retrieval.

        Args:
            images: Images [B, 3, 64, 64].
            captions: Their captions.

        Returns:
            Features of both, [B, E] each.
        """
        self.model.eval()
        with torch.no_grad():
            return embed_image(self.model, images), embed_text(self.model, captions)

    def scale(self) -> float:
        """Tell the model's factor on cosines.

        Returns:
            The factor, one over LAVIS' temperature.
        """
        return 1 / self.model.temp.item()


trial = PretrainTrial
