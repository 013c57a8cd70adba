"""The faults of LAVIS 1.0.2 that are repaired in the running process, as one table.

LAVIS is unmaintained. Its last release pins timm 0.4.12, transformers below 4.27 and numpy 1, but
works beside timm 1, transformers 4.40 to 4.57 and numpy 2 with equal losses. `FIXES` lists what is
repaired, when, and why. This module imports no host library, and no fix changes a file.

Importing LAVIS changes nothing that works: what it lacks beside newer libraries is put back, and
what is broken there is replaced. All other fixes are for people who use this package: they begin
with the first model that it builds or patches, and leave other models to LAVIS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pkgutil import resolve_name
from threading import RLock
from typing import Any, Literal

from elip_plugin.errors import UnsupportedModelError
from elip_plugin.hosts.versions import installed_version
from elip_plugin.patching.monkeypatch import replaced

OURS = "elip_plugin.hosts.lavis.compat"


@dataclass(frozen=True)
class Fix:
    """A fault of LAVIS and its repair.

    Attributes:
        when: When the repair begins: before LAVIS' "import", after it ("register"), with the
            first "model" that this package builds or patches, each until `undo`; or while a
            runner is at work ("run").
        where: The attribute of LAVIS or its libraries that is at fault, as "module:name".
        by: What replaces or repairs it, as "module:name".
        breaks: What breaks without the repair and why, beside which versions of other libraries.
        needed: Whether this process needs the repair, computed from the runner, if any.
        wraps: Whether `by` makes the new value from LAVIS' own one; for a "model" also from
            `RunnerHooks`, for a "run" also from the runner.
    """

    when: Literal["import", "register", "model", "run"]
    where: str
    by: str
    breaks: str
    needed: Callable[..., bool] = lambda *_: True
    wraps: bool = False


@dataclass(frozen=True)
class RunnerHooks:
    """For whom LAVIS' runners are extended."""

    includes: Callable[[Any], bool]  # of a model; LAVIS' own code serves the others
    # Takes the trained parameters, the optimizer steps made, and all steps.
    report: Callable[[list[Any], int, int], None]


def _moved(where: str, by: str, breaks: str) -> Fix:
    return Fix("import", where, by, breaks, needed=lambda: _is_missing(where))


def _since(*version: int) -> Callable[..., bool]:
    return lambda: installed_version("transformers") >= version


_with_models = partial(Fix, "model", wraps=True)
_on_other_devices = partial(Fix, "run", wraps=True, needed=lambda runner: not runner.cuda_enabled)

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
        f"{OURS}.language:tie_weights",
        "published weights: a language head's bias has two names; transformers 4.40 and later ties "
        "them again only where a module has this method, and without it the bias stays zero",
        needed=_since(4, 40),
    ),
    Fix(
        "register",
        "lavis.models.med:BertLMHeadModel.generate",
        f"{OURS}.language:generate",
        "captions and answers: transformers 4.27 and later repeats the image tokens once more, and "
        "from 4.50 on models do not inherit generate; one error says so",
        needed=_since(4, 27),
    ),
    Fix(
        "model",
        "lavis.models.blip2_models.blip2_qformer:dist",
        f"{OURS}.processes:dist",
        "one process: blip2_qformer.py:153 asks for its rank, which takes a process group",
    ),
    _with_models(
        "lavis.models.blip2_models.blip2_qformer:all_gather_with_grad",
        f"{OURS}.processes:gathering",
        "one process: base_model.py:209 asks how many there are, which takes a process group",
    ),
    _with_models(
        "lavis.models.clip_models.model:CLIP.loss",
        f"{OURS}.processes:clip_loss",
        "one process: model.py:507 asks how many there are, which takes a process group",
    ),
    Fix(
        "model",
        "lavis.models.blip_models.blip_classification:BlipIntermediateOutput",
        "lavis.models.albef_models.albef_outputs:AlbefIntermediateOutput",
        "training BLIP to classify: blip_classification.py:129 fills a field of its record of "
        "outputs that only ALBEF's record has",
    ),
    _with_models(
        "lavis.runners.runner_base:RunnerBase.lr_scheduler",
        f"{OURS}.runners:reporting",
        "schedules by progress: a model is not given the number of all steps, and the runners have "
        "no hook; they call the learning-rate schedule before each forward",
    ),
    _with_models(
        "lavis.runners.runner_base:RunnerBase.evaluate",
        f"{OURS}.runners:evaluate",
        "evaluate.py on a CPU, which uses LAVIS' own runner whatever the config says",
    ),
    Fix(
        "run",
        "lavis.runners.runner_base:dist",
        f"{OURS}.processes:dist",
        "one process: runner_base.py:406 waits for others even where there are none",
    ),
    Fix(
        "run",
        "lavis.common.logger:SmoothedValue.synchronize_between_processes",
        f"{OURS}.processes:synchronize",
        "gloo: logger.py:43 makes a CUDA tensor whatever the process group can carry",
    ),
    Fix(
        "run",
        "lavis.runners.runner_base:IterLoader",
        f"{OURS}.runners:iter_loader",
        "resuming: dataloader_utils.py:79 shuffles as in epoch 0",
        wraps=True,
    ),
    _on_other_devices(
        "lavis.runners.runner_base:RunnerBase.model",
        f"{OURS}.runners:unwrapped",
        "CPUs: runner_base.py:85 has no model where it need not be moved",
    ),
    _on_other_devices(
        "lavis.runners.runner_base:PrefetchLoader",
        f"{OURS}.runners:no_prefetching",
        "CPUs: dataloader_utils.py:56 opens a CUDA stream",
    ),
    _on_other_devices(
        "lavis.runners.runner_base:DataLoader",
        f"{OURS}.runners:no_pinned_memory",
        "CPUs: runner_base.py pins memory, which needs a GPU",
    ),
    _on_other_devices(
        "lavis.tasks.base_task:prepare_sample",
        f"{OURS}.runners:no_cuda",
        "CPUs: base_task.py:80 moves the samples of an evaluation to CUDA",
    ),
)

_applied: set[Fix] = set()
_undoing = ExitStack()
_applying = RLock()


def prepare() -> None:
    """Apply the fixes that `import lavis` needs; safe to repeat.

    Nothing is done beside transformers 5, where LAVIS would import but compute other losses.
    """
    if installed_version("transformers") < (5, 0):
        _apply("import")


def register() -> None:
    """Apply the fixes of an imported LAVIS for the rest of the process; safe to repeat."""
    _apply("register")


def extend(hooks: RunnerHooks) -> None:
    """Apply the fixes that models of this package need; safe to repeat, the first hooks stay."""
    _apply("model", hooks)


def undo() -> None:
    """Undo what `prepare`, `register` and `extend` did, last first."""
    with _applying:
        _undoing.close()
        _applied.clear()


@contextmanager
def running(runner: Any) -> Iterator[None]:
    """Apply the fixes of LAVIS' runner inside the context."""
    with ExitStack() as stack:
        for fix in FIXES:
            if fix.when == "run" and fix.needed(runner):
                stack.enter_context(_in_force(fix, runner))
        yield


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


def _apply(when: str, *given: Any) -> None:
    with _applying:
        for fix in FIXES:
            if fix.when == when and fix not in _applied and fix.needed():
                _undoing.enter_context(_in_force(fix, *given))
                _applied.add(fix)


@contextmanager
def _in_force(fix: Fix, *given: Any) -> Iterator[None]:
    owner, name = find(fix.where)
    value = resolve_name(fix.by)
    with replaced(owner, name, value(getattr(owner, name), *given) if fix.wraps else value):
        yield


def _is_missing(where: str) -> bool:
    try:
        owner, name = find(where)
    except ImportError:  # LAVIS' own import names what is missing
        return False
    return not hasattr(owner, name)
