"""Lets LAVIS 1.0.2 import and train beside libraries newer than its pins. Imports no host.

LAVIS is unmaintained: its last release asks for timm 0.4.12, transformers below 4.27 and a
numpy 1. It works beside timm 1, transformers 4.40 to 4.57 and numpy 2, with equal losses:
`prepare` puts the names of `MENDS` back before LAVIS is imported, `mend_models` changes one
class after it. For generation see `lavis/generation.py`.
"""

from __future__ import annotations

import importlib
from importlib import metadata
from typing import Any, NamedTuple

from elip_plugin.errors import UnsupportedModelError


class Mend(NamedTuple):
    """A name that LAVIS uses and a newer library dropped, and where its value is now."""

    module: str
    name: str
    source: str
    source_name: str


MENDS = (
    # lavis/models/med.py imports these three from where transformers had them before 4.57.
    Mend(
        "transformers.modeling_utils",
        "apply_chunking_to_forward",
        "transformers.pytorch_utils",
        "apply_chunking_to_forward",
    ),
    Mend(
        "transformers.modeling_utils",
        "find_pruneable_heads_and_indices",
        "transformers.pytorch_utils",
        "find_pruneable_heads_and_indices",
    ),
    Mend(
        "transformers.modeling_utils",
        "prune_linear_layer",
        "transformers.pytorch_utils",
        "prune_linear_layer",
    ),
    # AlbefPretrain.forward says np.Inf, which numpy 2 spells np.inf only.
    Mend("numpy", "Inf", "numpy", "inf"),
)


def prepare() -> None:
    """Put back what LAVIS needs and the installed libraries lack, before LAVIS is imported.

    Safe to repeat; leaves alone what is there. Does nothing beside transformers 5, where
    LAVIS would import but compute different losses.
    """
    if _transformers_is_too_new():
        return
    for mend in MENDS:
        try:
            module = importlib.import_module(mend.module)
            source = importlib.import_module(mend.source)
        except ImportError:
            continue  # LAVIS' own import says what is missing.
        if not hasattr(module, mend.name):
            setattr(module, mend.name, getattr(source, mend.source_name))


def mend_models() -> None:
    """Let LAVIS' language heads keep BERT's bias when published weights load; after `import lavis`.

    The head has its bias under two names, and newer versions of transformers tie such names
    again after loading only where a module says how. Without this, `from_pretrained` leaves
    the bias that is used at zero, and the loaded one unused. Safe to repeat.
    """
    from lavis.models.med import BertLMPredictionHead

    BertLMPredictionHead._tie_weights = _tie_weights


def _tie_weights(self: Any) -> None:
    self.decoder.bias = self.bias


def check() -> None:
    """Refuse libraries beside which LAVIS' models compute something else.

    Raises:
        UnsupportedModelError: With transformers 5 or later.
    """
    if _transformers_is_too_new():
        raise UnsupportedModelError(
            f"transformers {metadata.version('transformers')} is installed, and LAVIS 1.0.2 gives "
            "different losses there: pip install 'transformers<5'"
        )


def transformers_version() -> tuple[int, int]:
    """Tell which transformers is installed, without importing it.

    Returns:
        Major and minor version; zeros if there is none.
    """
    try:
        major, minor = metadata.version("transformers").split(".")[:2]
    except metadata.PackageNotFoundError:
        return 0, 0
    return int(major), int(minor)


def _transformers_is_too_new() -> bool:
    return transformers_version() >= (5, 0)
