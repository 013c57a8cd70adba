"""The memory of a training step with AdamW: counted without a GPU."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.machine.allocations import count_step, weight_bytes, without_memory
from elip_plugin.errors import ConfigError, UnsupportedModelError
from elip_plugin.hosts.base import HostModel
from elip_plugin.measure.variants import make_variants

UNITS = {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}
PRECISIONS = ("fp32", "bf16", "pure_bf16")
"""float32; the same weights with bfloat16 autocast; weights and states in bfloat16 too."""

COUNTED = (4, 64)
"""Batches that are counted; others lie on the lines through these two."""

LARGEST = 2**20


@dataclass(frozen=True)
class StepMemory:
    """The bytes of a training step at any batch."""

    weights: int  # and buffers
    trained: int  # the weights that are; so much for each set of gradients
    images: int  # one image
    updating: int  # what AdamW takes for a while as it updates
    kept: tuple[int, int]  # from forward to backward, at each of `COUNTED`
    # The most in each section at each of `COUNTED`, with gradients and without AdamW's states.
    peaks: tuple[tuple[int, ...], tuple[int, ...]]

    @property
    def states(self) -> int:
        """AdamW's two moments."""
        return 2 * self.trained

    @property
    def fixed(self) -> int:
        """What a step holds at any batch: weights, gradients and AdamW's moments."""
        return self.weights + self.trained + self.states

    def kept_at(self, batch: int) -> int:
        """Return the bytes kept from forward to backward at a batch."""
        return _at(batch, *self.kept)

    def peak_at(self, batch: int) -> int:
        """Return the most bytes that a step holds at a batch."""
        step = max(_at(batch, low, high) for low, high in zip(*self.peaks))
        update = self.weights + self.trained + self.updating + batch * self.images
        return self.states + max(step, update)

    def largest(self, budget: int) -> int:
        """Return the largest batch that fits; 0 if not even one pair does."""
        return max(0, bisect_right(range(LARGEST + 1), budget, key=self.peak_at) - 1)


def _at(batch: int, low: int, high: int) -> int:
    """Return the value at a batch on the line through those at `COUNTED`."""
    first, second = COUNTED
    return low + (high - low) * (batch - first) // (second - first)


def count_memory(
    host_model: HostModel,
    *,
    variant: str,
    precision: str = "fp32",
    checkpointing: bool = False,
    on_gpu: bool = True,
) -> StepMemory:
    """Count the memory of a training step, without any.

    The step runs on tensors that have shapes and no memory, and every storage is followed from its
    allocation to its end; attention is fused where the model calls torch's own. Not counted: the
    device's context, workspaces of its kernels, what the allocator cannot use between blocks
    (fragmentation), and copies that several processes need to exchange gradients.

    The model is built on the device "meta"; a variant of it is counted, as `make_variants` names
    them. Autocast and AdamW follow torch's rules for a GPU, or for a CPU. Raises a ConfigError for
    an unknown precision, and an UnsupportedModelError if the model has no gradient checkpointing.
    """
    check_precisions([precision])
    dtype = torch.bfloat16 if precision == "pure_bf16" else torch.float32
    with without_memory(host_model, dtype) as copied:
        copied = make_variants(copied, [variant], batch=COUNTED[0])[variant].host_model
        copied.model.train()
        if checkpointing:
            turn_on_checkpointing(copied)
        counts = [
            count_step(copied, batch, autocast=precision == "bf16", on_gpu=on_gpu)
            for batch in COUNTED
        ]
        weights, trained, largest = weight_bytes(copied.model)
        images = copied.example_batch(1)[0].numel() * dtype.itemsize
    (kept_low, low), (kept_high, high) = counts
    # On a GPU AdamW handles all weights at once, elsewhere one after the other.
    updating = trained if on_gpu else 2 * largest
    kept, peaks = (kept_low, kept_high), (tuple(low), tuple(high))
    return StepMemory(weights, trained, images, updating, kept, peaks)


def turn_on_checkpointing(host_model: HostModel) -> None:
    """Turn the gradient checkpointing of a model's own library on; refused if there is none."""
    model: Any = host_model.model
    if hasattr(model, "gradient_checkpointing_enable"):  # transformers
        model.gradient_checkpointing_enable({"use_reentrant": False})
    elif hasattr(model, "set_grad_checkpointing"):  # OpenCLIP
        model.set_grad_checkpointing(True)
    elif hasattr(model, "visual_encoder"):  # LAVIS, as `vit_grad_ckpt` does in all blocks
        from elip_plugin.hosts.lavis.compat.offline import checkpoint_blocks

        checkpoint_blocks(model.visual_encoder, len(model.visual_encoder.blocks))
    else:
        raise UnsupportedModelError(
            f"{host_model.name} has no gradient checkpointing: measure it without"
        )


def check_precisions(names: Sequence[str]) -> None:
    """Refuse precisions that are not known."""
    unknown = [name for name in names if name not in PRECISIONS]
    if unknown:
        raise ConfigError(f"--precision {unknown} are not known; choose from {list(PRECISIONS)}")


def parse_bytes(text: str) -> int:
    """Read an amount of memory."""
    match = re.fullmatch(r"\s*(\d+\.?\d*)\s*([KMG]i?B)\s*", text, re.IGNORECASE)
    if match is None:
        raise ConfigError(f"{text!r} is no amount of memory: write such as 24GiB or 500MB")
    return int(float(match[1]) * UNITS[match[2].upper()])
