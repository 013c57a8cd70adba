"""Records what LAVIS' models do in a forward, and compares what they return."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from recorders import recorded_choices, recorded_lengths
from torch import Tensor

from elip_plugin.hosts.lavis.text import CachingTokenizer
from elip_plugin.patching.calls import thread


def tensors(value: Any, name: str = "") -> dict[str, Any]:
    """All tensors, arrays and strings in an output, by path."""
    if value is None:
        return {}
    if isinstance(value, Mapping):
        parts = {str(key): value[key] for key in value}
    elif isinstance(value, (list, tuple)):
        parts = {str(i): part for i, part in enumerate(value)}
    elif isinstance(value, (Tensor, str, int, float)):
        return {name: value.detach().clone() if isinstance(value, Tensor) else value}
    elif hasattr(value, "__array__"):
        return {name: torch.as_tensor(value)}
    else:
        parts = dict(vars(value))
    return {k: v for key, part in parts.items() for k, v in tensors(part, f"{name}/{key}").items()}


def assert_equal(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Equal bit for bit, NaN included."""
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(ours[name], value, rtol=0, atol=0, equal_nan=True)
        else:
            assert ours[name] == value, name


def tower(model: Any, suffix: str = "") -> Any:
    return model.visual if hasattr(model, "visual") else getattr(model, f"visual_encoder{suffix}")


@contextmanager
def seen(model: Any, suffix: str = "") -> Iterator[list[int]]:
    """Record how many tokens enter each block, but not in calls that only look ahead."""
    vision = tower(model, suffix)
    if hasattr(vision, "blocks"):
        recorded = recorded_lengths(vision.blocks)
    else:  # CLIP's, sequence first
        recorded = recorded_lengths(vision.transformer.resblocks, dim=0)
    with recorded as lengths:
        yield lengths


@contextmanager
def choices() -> Iterator[list[Tensor]]:
    """Record which tokens each stage keeps; listed when the context ends."""
    kept: list[Tensor] = []
    with recorded_choices() as made:
        yield kept
    kept.extend(selection.kept for selection in made)


@contextmanager
def text_calls(model: Any, suffix: str = "") -> Iterator[list[str]]:
    """Record the calls of the text encoder, by mode; of CLIP's text transformer as "text"."""
    calls: list[str] = []
    if hasattr(model, "visual"):
        encoder: Any = model.transformer
        note: Callable[[Any], str] = lambda options: "text"  # noqa: E731
    else:
        bert = getattr(model, f"text_encoder{suffix}")
        encoder = getattr(bert, "bert", bert).encoder
        note = lambda options: str(options["mode"])  # noqa: E731

    def record(module: Any, args: Any, options: Any) -> None:
        calls.append(note(options))

    hook = encoder.register_forward_pre_hook(record, with_kwargs=True)
    try:
        yield calls
    finally:
        hook.remove()


@contextmanager
def tokenizations(model: Any) -> Iterator[list[Any]]:
    """Record what the model's tokenizer is asked for."""
    asked: list[Any] = []
    tokenizer = model.tokenizer

    class Counted:
        def __call__(self, text: Any, **options: Any) -> Any:
            asked.append(text)
            return tokenizer(text, **options)

        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

    model.tokenizer = Counted()
    try:
        yield asked
    finally:
        model.tokenizer = tokenizer


def shape_of(model: Any) -> list[Any]:
    """Types and attribute names of all modules: what a model is, but for its weights."""
    return [(name, type(m), sorted(vars(m))) for name, m in model.named_modules()]


def assert_nothing_left(model: Any) -> None:
    """Assert that no forward has left anything behind."""
    assert thread.innermost is None
    assert not isinstance(model.tokenizer, CachingTokenizer)
