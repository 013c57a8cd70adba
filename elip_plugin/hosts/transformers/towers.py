"""The vision encoders of transformers: their layers say their parts, the encoder prunes."""

from __future__ import annotations

import functools
import importlib
import inspect
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from elip_plugin.core.blocks import PackedAttention
from elip_plugin.errors import UnsupportedModelError
from elip_plugin.hosts.transformers.guide import weight_of
from elip_plugin.patching.blocks import PrunableBlock, PrunableStack
from elip_plugin.patching.description import Tower, TowerShape
from elip_plugin.patching.swap import Patched, Swap, swap_for, swaps_for

if TYPE_CHECKING:
    from elip_plugin.patching.pruner import Pruner

RECORDED = ("output_attentions", "output_hidden_states")
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


class NamedAsReplaced(Patched):
    """A patched class with the module and the names of the class that it replaces.

    They are written into files (`save_pretrained`, the adapters of peft), and code of the host goes
    by them: FSDP's wrapping policies, the choice of an attention implementation. Pickle, which
    would find the replaced class by them, is told how the patched one is made.
    """

    elip_mixin: ClassVar[type[NamedAsReplaced]]
    """What was added in front of the host's class."""

    @classmethod
    def body_for(cls, replaces: Any) -> dict[str, Any]:
        """Return further class attributes, which depend on the host's class."""
        return {}

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle or copy by the replaced class."""
        reduced: Any = super().__reduce_ex__(protocol)
        return (_new, (self.elip_mixin, self.replaces), *reduced[2:])


def _new(mixin: type[NamedAsReplaced], replaced: type) -> Any:
    """Make an empty object of a patched class."""
    patched = patched_class(mixin, replaced)
    return patched.__new__(patched)


def patched_class(mixin: Any, replaces: Any) -> Any:
    """Make the patched class of a class of transformers.

    Args:
        mixin: What is added in front of the host's class.
        replaces: The host's class.

    Returns:
        The class.
    """
    return _patched_class(mixin, replaces)


@functools.cache
def _patched_class(mixin: Any, replaces: Any) -> Any:
    body = {**mixin.body_for(replaces), "elip_mixin": mixin, "replaces": replaces}
    body |= {"__module__": replaces.__module__, "__qualname__": replaces.__qualname__}
    return type(replaces.__name__, (mixin, replaces), body)


def wrapped_forward(replaces: Any) -> dict[str, Any]:
    """Return a class body whose forward has the host's signature and calls `elip_forward`."""
    host = replaces.forward

    @functools.wraps(host)
    def forward(self: Any, *args: Any, **options: Any) -> Any:
        return self.elip_forward(host, args, options)

    return {"forward": forward}


class ElipTower(NamedAsReplaced):
    """A tower, from images to features."""

    if TYPE_CHECKING:
        elip: Pruner

    @classmethod
    def body_for(cls, replaces: Any) -> dict[str, Any]:
        """Return the forward."""
        return wrapped_forward(replaces)

    def elip_forward(self, host: Any, args: Any, options: Any) -> Any:
        """Run the host's forward, which `Pruner.current` finds in the encoder."""
        tower: Any = self
        with self.elip.begin(tower) as pruning:
            if pruning is not None:  # here: transformers 4 would take the error for its own
                refuse_recording(tower.config, options)
            return host(self, *args, **options)


class ElipLayer(NamedAsReplaced, PrunableBlock):
    """A layer with separate projections of queries, keys and values; it has no dropout."""

    elip_masks: ClassVar[int]
    """Attention masks that the host's layer must be given after the tokens; here all None."""

    @classmethod
    def body_for(cls, replaces: Any) -> dict[str, Any]:
        """Return the number of masks."""
        parameters = list(inspect.signature(replaces.forward).parameters.values())[2:]
        positional = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        return {"elip_masks": sum(p.default is p.empty for p in positional)}

    def _heads(self, projected: Tensor) -> Tensor:
        attn: Any = self.self_attn
        return projected.view(*projected.shape[:2], -1, attn.head_dim).transpose(1, 2)

    def query_and_keys(self, query: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalize and project a query token and the tokens; see `BlockParts`."""
        layer: Any = self
        q = layer.self_attn.q_proj(layer.layer_norm1(query))
        return self._heads(q), self._heads(layer.self_attn.k_proj(layer.layer_norm1(x)))

    def queries_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalize and project tokens; see `BlockParts`."""
        layer: Any = self
        x, attn = layer.layer_norm1(x), layer.self_attn
        return self._heads(attn.q_proj(x)), self._heads(attn.k_proj(x)), self._heads(attn.v_proj(x))

    def attention_output(self, mixed: Tensor) -> Tensor:
        """Join the heads and project; see `BlockParts`."""
        layer: Any = self
        return layer.self_attn.out_proj(mixed.transpose(1, 2).flatten(2))

    def feed_forward(self, x: Tensor) -> Tensor:
        """Run the MLP; see `BlockParts`."""
        layer: Any = self
        return layer.mlp(layer.layer_norm2(x))

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Call the layer; transformers 4 would checkpoint what has no gradient, with a warning."""
        if torch.is_grad_enabled():
            return super().__call__(*args, **options)  # type: ignore[misc]
        return nn.Module.__call__(self, *args, **options)


class ElipPackedLayer(ElipLayer):
    """A layer whose queries, keys and values come from one projection."""

    query_and_keys = PrunableBlock.query_and_keys
    queries_keys_values = PrunableBlock.queries_keys_values

    def packed_attention(self) -> PackedAttention:
        """Return the attention's projections; see `PrunableBlock`."""
        layer: Any = self
        attn = layer.self_attn
        weight, bias = weight_of(attn.qkv), attn.qkv.bias
        return PackedAttention(layer.layer_norm1, weight, bias, attn.num_heads)

    def attention_output(self, mixed: Tensor) -> Tensor:
        """Join the heads and project; see `BlockParts`."""
        layer: Any = self
        return layer.self_attn.projection(mixed.transpose(1, 2).flatten(2))


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
        return layer(x, elip=functools.partial(_run_mode, mode=mode), **_detached(mode_options))
    out = layer(x, *[None] * layer.elip_masks, **_options)
    return out[0] if isinstance(out, tuple) else out


def _run_mode(layer: Any, x: Tensor, *, mode: Any, **options: Any) -> Any:
    """Run a mode of which only the tokens have a gradient, not what it returns beside them.

    Re-entrant checkpointing marks every tensor that it returns as having a gradient. A tensor that
    also is an input of the next layer would run all the layers before it in each backward pass.
    """
    out = mode(layer, x, **options)
    if isinstance(out, tuple):
        beside = _detached(dict(enumerate(out[1:])))
        return (out[0], *beside.values())
    return out


def _detached(values: dict[Any, Any]) -> dict[Any, Any]:
    return {k: v.detach() if isinstance(v, Tensor) else v for k, v in values.items()}


def refuse_recording(config: Any, options: dict[str, Any]) -> None:
    """Refuse to return what each layer made of the tokens; their number changes."""
    for name in RECORDED:
        given = options.get(name)
        if getattr(config, name, False) if given is None else given:
            raise UnsupportedModelError(
                f"{name} is not available from a pruned forward, whose layers have fewer and fewer "
                "tokens and are also run to look ahead: run it inside `handle.disabled()`, or "
                "record what was kept by `handle.trace()`"
            )


LAYERS: dict[type, type[nn.Module]] = {}
ENCODERS: dict[type, type[nn.Module]] = {}
for _family in FAMILIES:
    _layer, _encoder = _family.find_class(_family.layer), _family.find_class(_family.encoder)
    if _layer is not None and _encoder is not None:  # else this version has renamed them
        LAYERS[_layer] = patched_class(ElipPackedLayer if _family.packed else ElipLayer, _layer)
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
