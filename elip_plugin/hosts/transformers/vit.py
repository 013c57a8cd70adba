"""The plain ViT of transformers (`ViTModel`), which a `VisionTextDualEncoderModel` may have.

Its parts have other names in transformers 4 than in 5, where it has no encoder of its own.
"""

from __future__ import annotations

import functools
import inspect
from dataclasses import replace
from typing import Any

from transformers import ViTModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.vit.modeling_vit import ViTLayer

from elip_plugin.errors import UnsupportedModelError
from elip_plugin.hosts.transformers import towers
from elip_plugin.patching.blocks import PrunableStack, refuse_recording
from elip_plugin.patching.description import Tower, TowerShape
from elip_plugin.patching.named import NamedAsReplaced, patched_class, wrapped_forward
from elip_plugin.patching.parts import Parts
from elip_plugin.patching.swap import swap_for, swaps_for

PARAMETERS = tuple(inspect.signature(ViTModel.forward).parameters)[1:]
MASKS = ("bool_masked_pos", "head_mask", "attention_mask")
"""Arguments of the host's forward that a pruned one cannot have."""

DROPOUTS = ("attention_probs_dropout_prob", "hidden_dropout_prob")


PARTS = Parts(
    "layernorm_before",
    ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    "attention.num_attention_heads",
    ("attention.o_proj",),
    "layernorm_after",
    ("mlp",),
)
PARTS_4 = replace(
    PARTS,
    projections=tuple(f"attention.attention.{name}" for name in ("query", "key", "value")),
    heads="attention.attention.num_attention_heads",
    output=("attention.output.dense",),
    mlp=("intermediate", "output.dense"),
)
"""In transformers 4."""


class ElipViT(NamedAsReplaced, PrunableStack):
    """A plain ViT that prunes between its layers, outside any checkpointed region."""

    @classmethod
    def body_for(cls, replaces: Any, *data: Any) -> dict[str, Any]:
        """Return the forward."""
        return wrapped_forward(replaces)

    def elip_forward(self, host: Any, args: Any, options: Any) -> Any:
        """Run the host's forward, or its parts with the plan's stages if pruning is active."""
        vit: Any = self
        with self.elip.begin(vit) as pruning:
            if pruning is None:
                return host(self, *args, **options)
            given: dict[str, Any] = {**dict(zip(PARAMETERS, args)), **options}
            pruning.refuse_mask(**{name: given.get(name) for name in MASKS})
            refuse_recording(vit.config, options)
            images: Any = given["pixel_values"]
            images = images.to(vit.embeddings.patch_embeddings.projection.weight.dtype)
            interpolate = given.get("interpolate_pos_encoding")
            x = vit.embeddings(images, interpolate_pos_encoding=interpolate)
            call = functools.partial(towers.run_layer, _options={})
            x = vit.layernorm(pruning.run_blocks(x, layers_of(vit), call))
            pooled = vit.pooler(x) if vit.pooler is not None else None
            output = BaseModelOutputWithPooling(last_hidden_state=x, pooler_output=pooled)
            return output.to_tuple() if given.get("return_dict") is False else output


MODELS = {ViTModel: patched_class(ElipViT, ViTModel)}


def layers_of(vit: Any) -> Any:
    """Return the layers of a plain ViT, in any version of transformers."""
    return vit.layers if hasattr(vit, "layers") else vit.encoder.layer


def describe(vit: Any) -> Tower:
    """Describe a plain ViT; see `Host.describe`."""
    config = vit.config
    dropouts = {name: getattr(config, name) for name in DROPOUTS if getattr(config, name) > 0}
    if dropouts:
        raise UnsupportedModelError(
            f"a ViT with {', '.join(f'{name} {p:g}' for name, p in dropouts.items())}: choosing "
            "tokens must be deterministic; set it to 0 in the vision config"
        )
    layers, embedding = layers_of(vit), vit.embeddings.patch_embeddings
    parts = PARTS if hasattr(layers[0].attention, "q_proj") else PARTS_4
    shape = TowerShape(
        num_patches=embedding.num_patches,
        depth=len(layers),
        width=config.hidden_size,
        prefix=1,
        class_query=True,
    )
    return Tower(
        shape,
        swap_for(vit, MODELS),
        swaps_for(layers, {ViTLayer: patched_class(towers.ElipSeparateLayer, ViTLayer, parts)}),
        random_blocks=True,
        patch_embed=embedding.projection,
        norm="layernorm",
    )
