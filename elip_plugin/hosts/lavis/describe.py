"""What a LAVIS model is: its towers, its text encoders, and whether a text can guide it."""

from __future__ import annotations

from typing import Any

from elip_plugin.errors import ConfigError, ElipError, UnsupportedModelError
from elip_plugin.hosts.lavis import towers
from elip_plugin.hosts.lavis.compat import fixes
from elip_plugin.hosts.lavis.text import TEXT_ENCODERS, inner_bert
from elip_plugin.patching.description import Description
from elip_plugin.patching.swap import Swap, swap_for

LEAK = (
    "at test time its text is the answer, or is compared with all images, and an image pruned by "
    "it would leak it into the scores; use 'full' or 'image'"
)


def describe_model(module: Any, model: Swap) -> Description:
    """Describe a LAVIS model, given the swap of its class; see `Host.describe`.

    The first one turns on the fixes that pruned models need of LAVIS.
    """
    fixes.apply("model")
    patched: Any = model.patched
    leak = "" if patched.text_at_test else LEAK
    if hasattr(module, "visual"):
        return Description(module, towers.describe(module.visual), (model,), None, leak)
    encoders = [getattr(module, n, None) for n in ("text_encoder", "text_encoder_m")]
    berts = [inner_bert(e) for e in encoders if e is not None] if patched.own_text_pass else []
    return Description(
        module,
        towers.describe(module.visual_encoder),
        (*(swap_for(bert, TEXT_ENCODERS) for bert in berts), model),
        towers.describe(module.visual_encoder_m) if hasattr(module, "visual_encoder_m") else None,
        leak,
        no_text_guide=_why_no_guide(module, patched),
        teachable=True,
        default=None if isinstance(patched.default, str) else patched.default,
    )


def _why_no_guide(model: Any, patched: Any) -> ElipError | None:
    name = patched.replaces.__name__
    if patched.guided_by == "nothing":
        return ConfigError(
            f"{name} has no text to guide its tower (its caption is the answer): set "
            "text_weight 0 to prune by the image alone"
        )
    text_width = inner_bert(model.text_encoder).config.hidden_size
    vision_width = model.visual_encoder.embed_dim
    if text_width == vision_width or hasattr(model, "vision_proj"):
        return None
    # LAVIS' answer decoders take the tower's width, so VQA cannot do with unequal ones.
    needs_equal = hasattr(model, "text_decoder")
    other = "" if needs_equal else ", or set text_weight 0 to prune by the image alone"
    return UnsupportedModelError(
        f"{name} has a text encoder of width {text_width}, a tower of width {vision_width} "
        "and no projection between them by which text could guide it: make the widths "
        f"equal{other}"
    )
