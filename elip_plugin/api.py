"""`apply`: prune a model in place, and get a handle that guides, pauses and undoes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from elip_plugin.config import ElipConfig
from elip_plugin.core.trace import Trace
from elip_plugin.errors import ConfigError, UnsupportedModelError
from elip_plugin.hosts.anyvit.check import check
from elip_plugin.hosts.registry import describe, find_host
from elip_plugin.patching.description import Description
from elip_plugin.patching.forward import GuideUse
from elip_plugin.patching.install import find_pruner, find_pruners, install
from elip_plugin.patching.swap import find_patched, restore
from elip_plugin.patching.wrappers import unwrap
from elip_plugin.planning import Plan


class Handle:
    """Control over the pruning of one model; holds nothing but the model.

    Args:
        model: A patched model or tower.

    Example:
        >>> import open_clip, torch
        >>> model = open_clip.create_model("ViT-B-32").train()
        >>> handle = apply(model, "fast")
        >>> images, text_features = torch.randn(1, 3, 224, 224), torch.randn(1, 512)
        >>> with handle.guide(text_features), handle.trace() as trace:
        ...     features = model.encode_image(images)
        >>> [stage.kept.shape[1] for stage in trace.stages]
        [44, 31, 19]
        >>> handle.remove()
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __repr__(self) -> str:
        try:
            return f"Handle({type(self.model).__name__}: {self.plan.summary()})"
        except UnsupportedModelError:
            return f"Handle({type(self.model).__name__}: not pruned)"

    @property
    def config(self) -> ElipConfig:
        """The configuration in force."""
        return find_pruner(self.model).config

    @property
    def plan(self) -> Plan:
        """The plan for images of the model's own size, or of the one given to `apply`.

        A forward of another size has a plan of its own.
        """
        return find_pruner(self.model).plan

    @contextmanager
    def guide(self, features: Tensor) -> Iterator[None]:
        """Guide the forwards inside the context, where pruning is active, by this text.

        A guide given here wins over the caption in `model(image, text)`. In evaluation the
        config's `eval_mode` decides whether anything is pruned. It holds for forwards of this
        thread; around `torch.nn.DataParallel`, which splits the batch, it is refused. A guide that
        no forward used is warned of once.

        Args:
            features: Text features [B, E] for a whole model (any norm), or a guide [B, D]
                for a bare tower. Detached.
        """
        guide = find_host(self.model).text_guide(self.model, features)
        pruner, use = find_pruner(self.model), GuideUse()
        with pruner.asked(guide=guide, guide_use=use):
            yield
        if not use.used:
            pruner.warn_unused()

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Run the forwards inside the context unpruned, bitwise as the base model.

        It holds for forwards of this thread; around `torch.nn.DataParallel` it is refused.
        """
        find_pruner(self.model)
        with ExitStack() as stack:
            for pruner in find_pruners(self.model):
                stack.enter_context(pruner.asked(enabled=False))
            yield

    @contextmanager
    def trace(self) -> Iterator[Trace]:
        """Record which patches the forwards inside the context keep and merge.

        A trace holds the last of these forwards, and puts its tokens back on the full grid. It
        records forwards of this thread; around `torch.nn.DataParallel` it is refused.

        Yields:
            The trace, which is filled as forwards run.
        """
        pruner = find_pruner(self.model)
        trace = Trace(pruner.shape.prefix)
        with pruner.asked(trace=trace):
            yield trace

    def remove(self) -> None:
        """Turn the model back into what it was; safe to repeat.

        Nothing of this package is left on it, its weights are as they are now.
        """
        restore(self.model)

    def update_progress(self, step: int, total_steps: int) -> None:
        """Report how far the training is, for a config with a schedule.

        OpenCLIP's and LAVIS' training commands do this by themselves; own loops call it before
        each optimizer step's forward.

        Args:
            step: Optimizer steps made so far, from 0.
            total_steps: Optimizer steps of the whole training.

        Raises:
            ConfigError: If the step is below 0, or the total below 1.
        """
        for pruner in find_pruners(self.model):
            pruner.progress.update(step, total_steps)


def apply(
    model: nn.Module | Description,
    config: ElipConfig | Mapping[str, Any] | str | None = None,
    *,
    image_size: int | tuple[int, int] | None = None,
) -> Handle:
    """Prune the vision tower of a model in place.

    Args:
        model: A model of OpenCLIP, LAVIS or transformers, its vision tower by itself, or any model
            with a vision transformer of the usual parts; wrappers such as a `PeftModel` are looked
            through. Or a description of one, such as `elip_plugin.describe` makes, which is checked
            by numbers first.
        config: A configuration, a mapping for `ElipConfig.from_mapping`, a preset's name, or a
            file such as `elip plan -o plan.yaml` writes; None for "half", or what the host says of
            this kind of model, such as one that answers questions.
        image_size: Pixels of a side of the images that the plan is for, or rows and columns; None
            for the size that the model's own attributes name. It is for models of no known host
            that take several sizes. Forwards of other sizes are pruned by the same ratios, by plans
            of their own.

    Returns:
        A handle. On any error the model is as before.

    Raises:
        ConfigError: If the configuration is at fault, or does not suit this kind of model, or if a
            size is given with a description, which has one.
        PlanError: If it does not fit the tower's depth or number of patches, or prunes nothing.
        UnsupportedModelError: If the model cannot be pruned, already is, or does not take images
            of this size.
        MissingHostError: If the model's library is not one that can be imported.

    Example:
        >>> import open_clip
        >>> handle = apply(open_clip.create_model("ViT-B-32"), "half")
        >>> handle.plan.tokens
        (50, 46, 42, 38, 34, 30, 26, 21, 17, 13, 9, 5)
    """
    module = unwrap(model.module if isinstance(model, Description) else model)
    if any(True for _ in find_patched(module)):
        raise UnsupportedModelError(
            "this model is pruned by ELIP already; call find_handle(model).remove() first"
        )
    if isinstance(model, Description):
        if image_size is not None:
            raise ConfigError(
                f"image_size {image_size} with a description, which is for a size already: give it "
                "to elip_plugin.describe"
            )
        description = model
        for tower in filter(None, (model.tower, model.momentum)):
            check(tower)
    else:
        description = describe(module, image_size)
    if not isinstance(config, ElipConfig):
        config = ElipConfig.from_mapping(config, default=description.default)
    pruner = install(description, config)
    learns = module.training or any(weight.requires_grad for weight in module.parameters())
    if config.eval_mode == "full" and not learns:
        pruner.warn_unpruned()
    return Handle(module)


def find_handle(model: nn.Module) -> Handle:
    """Get the handle of a model that was made by name, copied or unpickled.

    Args:
        model: A patched model or tower; the wrappers of DataParallel, DistributedDataParallel,
            FSDP, torch.compile and peft are looked through, in any order.

    Returns:
        Its handle.

    Raises:
        UnsupportedModelError: If the model is not patched.

    Example:
        >>> import open_clip
        >>> find_handle(open_clip.create_model("elip-half-ViT-B-32")).config.reducer.name
        'tome'
    """
    model = unwrap(model)
    find_pruner(model)
    return Handle(model)
