"""The faults of LAVIS 1.0.2 that are repaired in the running process, as one table.

LAVIS is unmaintained. Its last release pins timm 0.4.12, transformers below 4.27 and numpy 1, but
works beside timm 1, transformers 4.40 to 4.57 and numpy 2 with equal losses. `FIXES` lists what is
repaired, when, and why. This module imports no host library, and no fix changes a file.

Importing LAVIS changes nothing that works: what it lacks beside newer libraries is put back, and
what is broken there is replaced. All other fixes begin with the first model that this package
builds or patches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pkgutil import resolve_name
from typing import Any, Literal

from elip_plugin.errors import UnsupportedModelError
from elip_plugin.hosts.versions import installed_version

OURS = "elip_plugin.hosts.lavis"


@dataclass(frozen=True)
class Fix:
    """A fault of LAVIS and its repair, which stays for the rest of the process.

    Attributes:
        when: When the repair begins: before LAVIS' "import", after it ("register"), or with the
            first "model" that this package builds or patches.
        where: The attribute of LAVIS or its libraries that is at fault, as "module:name".
        by: What takes its place, as "module:name".
        breaks: What breaks without the repair and why, beside which versions of other libraries.
        needed: Whether this process needs the repair.
    """

    when: Literal["import", "register", "model"]
    where: str
    by: str
    breaks: str
    needed: Callable[[], bool] = lambda: True


def _moved(where: str, by: str, breaks: str) -> Fix:
    return Fix("import", where, by, breaks, needed=lambda: _is_missing(where))


def _since(*version: int) -> Callable[[], bool]:
    return lambda: installed_version("transformers") >= version


FIXES = (
    *(
        _moved(
            f"transformers.modeling_utils:{name}",
            f"transformers.pytorch_utils:{name}",
            "the import beside transformers 4.57: med.py asks for it where it was before",
        )
        for name in (
            "apply_chunking_to_forward",
            "find_pruneable_heads_and_indices",
            "prune_linear_layer",
        )
    ),
    _moved("numpy:Inf", "numpy:inf", "AlbefPretrain.forward beside numpy 2: it reads np.Inf"),
    Fix(
        "register",
        "lavis.models.med:BertLMPredictionHead._tie_weights",
        f"{OURS}.compat.language:tie_weights",
        "published weights: a language head's bias has two names; transformers 4.40 and later ties "
        "them again only where a module has this method, and without it the bias stays zero",
        needed=_since(4, 40),
    ),
    Fix(
        "register",
        "lavis.models.med:BertLMHeadModel.generate",
        f"{OURS}.compat.language:generate",
        "captions and answers: transformers 4.27 and later repeats the image tokens once more, and "
        "from 4.50 on models do not inherit generate; one error says so",
        needed=_since(4, 27),
    ),
    Fix(
        "model",
        "lavis.models:AlbefNLVR.load_from_pretrained",
        f"{OURS}.compat.offline:load_nlvr",
        "fine-tuning ALBEF on NLVR2: it unpacks one value into two, when the weights are in and "
        "the momentum encoder is not yet their copy",
    ),
    Fix(
        "model",
        "lavis.models.blip_models.blip_classification:BlipIntermediateOutput",
        "lavis.models.albef_models.albef_outputs:AlbefIntermediateOutput",
        "training BLIP to classify: blip_classification.py:129 fills a field of its record of "
        "outputs that only ALBEF's record has",
    ),
    Fix(
        "model",
        "lavis.runners.runner_base:RunnerBase.lr_scheduler",
        f"{OURS}.progress:lr_scheduler",
        "schedules by progress: a model is not given the number of all steps",
    ),
)


def apply(when: Literal["import", "register", "model"]) -> None:
    """Apply the fixes of a moment that this process needs; safe to repeat.

    Nothing is done beside transformers 5, where LAVIS would import but compute other losses.
    """
    if installed_version("transformers") >= (5, 0):
        return
    for fix in FIXES:
        if fix.when == when and fix.needed():
            value = resolve_name(fix.by)  # before its owner changes: it may be made from that
            owner, name = find(fix.where)
            setattr(owner, name, value)


def check_libraries() -> None:
    """Raise an `UnsupportedModelError` beside libraries with which LAVIS' models differ."""
    if installed_version("transformers") >= (5, 0):
        raise UnsupportedModelError(
            f"transformers {metadata.version('transformers')} is installed, and LAVIS 1.0.2 gives "
            "different losses there: pip install 'transformers<5'"
        )


def find(reference: str) -> tuple[Any, str]:
    """Import the owner of what "module:name" refers to; return it and the last part of the name."""
    module, _, path = reference.partition(":")
    owner, _, name = path.rpartition(".")
    return resolve_name(f"{module}:{owner}"), name


def _is_missing(where: str) -> bool:
    try:
        owner, name = find(where)
    except ImportError:  # LAVIS' own import names what is missing
        return False
    return not hasattr(owner, name)
