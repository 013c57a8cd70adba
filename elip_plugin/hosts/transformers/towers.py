"""The vision encoders of transformers: their layers say their parts, the encoder prunes."""

from __future__ import annotations

import functools
import importlib
import inspect
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from elip_plugin.core.blocks import PackedAttention
from elip_plugin.errors import UnsupportedModelError
from elip_plugin.hosts.transformers.guide import weight_of
from elip_plugin.patching.blocks import (
    RECORDED,
    PrunableStack,
    call_detached,
    refuse_recording,
)
from elip_plugin.patching.description import Tower, TowerShape
from elip_plugin.patching.named import NamedAsReplaced, patched_class, wrapped_forward
from elip_plugin.patching.parts import PackedBlock, Parts, PartsBlock, SeparateBlock
from elip_plugin.patching.swap import Swap, swap_for, swaps_for

NOT_FOR_LAYERS = (*RECORDED, "return_dict", "attention_mask")
"""Options of an encoder that a pruned forward does not hand to its layers."""


class Family(NamedTuple):
    """The names of a family's classes in transformers.

    Attributes:
        module: The family's folder.
        prefix: What the names of its models begin with.
        encoder: The vision encoder.
        layer: The encoder's layers.
        packed: Whether one projection of a layer makes queries, keys and values.
    """

    module: str
    prefix: str
    encoder: str
    layer: str
    packed: bool = False

    def find_class(self, name: str) -> Any:
        """Return a class of the family; None if this version of transformers has none."""
        module = f"transformers.models.{self.module}.modeling_{self.module}"
        try:
            return getattr(importlib.import_module(module), name, None)
        except ImportError:
            return None

    def is_complete(self) -> bool:
        """Return whether this version of transformers has the classes that pruning needs."""
        return None not in map(self.find_class, (self.encoder, self.layer, f"{self.prefix}Model"))


KNOWN_FAMILIES = (
    Family("clip", "CLIP", "CLIPEncoder", "CLIPEncoderLayer"),
    Family("siglip", "Siglip", "SiglipEncoder", "SiglipEncoderLayer"),
    Family("metaclip_2", "MetaClip2", "MetaClip2Encoder", "MetaClip2EncoderLayer"),
    Family("altclip", "AltCLIP", "AltCLIPEncoder", "AltCLIPEncoderLayer"),
    Family("chinese_clip", "ChineseCLIP", "ChineseCLIPVisionEncoder", "ChineseCLIPVisionLayer"),
    Family("blip", "Blip", "BlipEncoder", "BlipEncoderLayer", packed=True),
    Family("blip_2", "Blip2", "Blip2Encoder", "Blip2EncoderLayer", packed=True),
    *(
        Family(name.lower(), name, f"{name}Encoder", f"{name}EncoderLayer", packed=True)
        for name in ("InstructBlip", "InstructBlipVideo")
    ),
)

FAMILIES = tuple(family for family in KNOWN_FAMILIES if family.is_complete())
"""Those of this version of transformers: a class that it renamed takes its own family along."""


class ElipTower(NamedAsReplaced):
    """A tower, from images to features."""

    @classmethod
    def body_for(cls, replaces: Any, *data: Any) -> dict[str, Any]:
        """Return the forward."""
        return wrapped_forward(replaces)

    def elip_forward(self, host: Any, args: Any, options: Any) -> Any:
        """Run the host's forward, which `Pruner.current` finds in the encoder."""
        tower: Any = self
        with self.elip.begin(tower) as pruning:
            if pruning is not None:  # here: transformers 4 would take the error for its own
                refuse_recording(tower.config, options)
            return host(self, *args, **options)


class ElipLayer(PartsBlock):
    """A layer as transformers calls it; it has no dropout."""

    elip_masks: ClassVar[int]
    """Attention masks that the host's layer must be given after the tokens; here all None."""

    @classmethod
    def body_for(cls, replaces: Any, *data: Any) -> dict[str, Any]:
        """Return where the parts are, and the number of masks."""
        parameters = list(inspect.signature(replaces.forward).parameters.values())[2:]
        positional = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        masks = sum(p.default is p.empty for p in positional)
        return {**super().body_for(replaces, *data), "elip_masks": masks}

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Call the layer; transformers 4 would checkpoint what has no gradient, with a warning."""
        if torch.is_grad_enabled():
            return super().__call__(*args, **options)  # type: ignore[misc]
        return nn.Module.__call__(self, *args, **options)


class ElipSeparateLayer(ElipLayer, SeparateBlock):
    """A layer with separate projections of queries, keys and values."""


class ElipPackedLayer(ElipLayer, PackedBlock):
    """A layer whose queries, keys and values come from one projection."""

    def packed_attention(self) -> PackedAttention:
        """Return the attention's projections, adapters included; see `PrunableBlock`."""
        weight = weight_of(self.self_attn.qkv)
        return super().packed_attention()._replace(weight=weight)


SEPARATE = Parts(
    "layer_norm1",
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.num_heads",
    ("self_attn.out_proj",),
    "layer_norm2",
    ("mlp",),
)
PACKED = replace(
    SEPARATE,
    projections=("self_attn.qkv.weight", "self_attn.qkv.bias"),
    output=("self_attn.projection",),
)


class ElipEncoder(NamedAsReplaced, PrunableStack):
    """An encoder that prunes between its layers, outside any checkpointed region."""

    def forward(self, inputs_embeds: Tensor, *args: Any, **options: Any) -> Any:
        """Run the layers on tokens [B, P + N, D], with the plan's stages if pruning is active."""
        encoder: Any = self
        pruning = self.elip.current(encoder)
        if pruning is None:
            host: Any = super()
            return host.forward(inputs_embeds, *args, **options)
        mask = (*args, None)[0]
        pruning.refuse_mask(attention_mask=options.get("attention_mask", mask))
        refuse_recording(encoder.config, options)
        options = {k: v for k, v in options.items() if k not in NOT_FOR_LAYERS}
        call = functools.partial(run_layer, _options=options)
        x = pruning.run_blocks(inputs_embeds, encoder.layers, call)
        return BaseModelOutput(last_hidden_state=x)


def run_layer(
    layer: Any, x: Tensor, mode: Any = None, *, _options: dict[str, Any], **mode_options: Any
) -> Any:
    """Run a layer, or a mode of it; `_options` are what the encoder hands to its layers."""
    if mode is not None:
        return call_detached(layer, x, mode, **mode_options)
    out = layer(x, *[None] * layer.elip_masks, **_options)
    return out[0] if isinstance(out, tuple) else out


LAYERS: dict[type, type[nn.Module]] = {}
ENCODERS: dict[type, type[nn.Module]] = {}
for _family in FAMILIES:
    _layer, _encoder = _family.find_class(_family.layer), _family.find_class(_family.encoder)
    if _layer is not None and _encoder is not None:  # else this version has renamed them
        _kind = (ElipPackedLayer, PACKED) if _family.packed else (ElipSeparateLayer, SEPARATE)
        LAYERS[_layer] = patched_class(_kind[0], _layer, _kind[1])
        ENCODERS[_encoder] = patched_class(ElipEncoder, _encoder)


def describe(tower: Any) -> Tower:
    """Describe a vision tower; see `Host.describe`."""
    encoder, config = tower.encoder, tower.config
    if config.attention_dropout > 0:
        raise UnsupportedModelError(
            f"a tower with attention_dropout {config.attention_dropout:g}: choosing tokens must be "
            "deterministic; set it to 0 in the vision config"
        )
    prefix = 1 if hasattr(tower.embeddings, "class_embedding") else 0
    shape = TowerShape(
        num_patches=tower.embeddings.num_patches,
        depth=len(encoder.layers),
        width=config.hidden_size,
        prefix=prefix,
        class_query=prefix == 1,
        frozen=not any(weight.requires_grad for weight in tower.parameters()),
    )
    # Looking ahead cannot call a layer by itself: some versions want masks and return tuples.
    stack, blocks = swap_for(encoder, ENCODERS), swaps_for(encoder.layers, LAYERS)
    return Tower(
        shape,
        stack,
        blocks,
        others=(Swap(tower, patched_class(ElipTower, type(tower))),),
        random_blocks=True,
        module=tower,
        patch_embed=tower.embeddings.patch_embedding,
        norm="post_layernorm",
    )
