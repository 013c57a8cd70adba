"""What a training step would allocate, counted by running it on tensors that have no memory."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from elip_plugin.hosts.base import HostModel
from elip_plugin.patching.monkeypatch import replaced

aten = torch.ops.aten
IN_FLOAT32 = ((F, "layer_norm"), (F, "softmax"), (torch, "softmax"), (Tensor, "softmax"))
"""What autocast runs in float32 on a GPU, and not on a CPU."""


class Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the bytes that live tensors hold while operations run, each storage once.

    `live` are those held now, at first by the tensors that are there; `peaks` the most that was
    held between one `mark` and the next.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self._most = 0
        self.peaks: list[int] = []
        self._storages: dict[int, weakref.ref[Any]] = {}
        for tensor in tensors:
            self._add(tensor)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation and add what it returns."""
        if func is aten._local_scalar_dense.default:  # the value of a tensor that has none
            return 0.0 if args[0].is_floating_point() else 0
        if func is aten.index.Tensor:
            args = (args[0], [_all_chosen(index) for index in args[1]])
        out = func(*args, **(kwargs or {}))
        for value in tree_iter(out):
            if isinstance(value, Tensor):
                self._add(value)
        return out

    def mark(self) -> None:
        """End a section of the step."""
        self.peaks.append(self._most)
        self._most = self.live

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:
            return

        def freed(_: Any) -> None:
            self.live -= size
            del self._storages[key]

        self._storages[key] = weakref.ref(storage, freed)
        self.live += size
        self._most = max(self._most, self.live)


def _all_chosen(index: Any) -> Any:
    """Replace a mask, whose count of true entries is not known, by one that chooses all."""
    if index is None or index.dtype is not torch.bool:
        return index
    return torch.zeros(index.numel(), dtype=torch.long, device=index.device)


@contextmanager
def without_memory(
    host_model: HostModel, dtype: torch.dtype = torch.float32
) -> Iterator[HostModel]:
    """Copy a model of the meta device: its weights are then a CPU's, without bytes."""
    copied = replace(host_model, model=copy.deepcopy(host_model.model))
    copies: dict[int, Tensor] = {}

    def convert(tensor: Tensor) -> Tensor:
        if id(tensor) not in copies:  # tied weights stay tied
            to = dtype if tensor.is_floating_point() else tensor.dtype
            copies[id(tensor)] = torch.empty(tensor.shape, dtype=to)
        return copies[id(tensor)]

    # Not the meta device: autocast and fused attention exist for a CPU and not for that.
    with FakeTensorMode(allow_non_fake_inputs=True):
        before = [*copied.model.parameters(), *copied.model.buffers()]  # so that ids stay theirs
        copied.model._apply(convert)
        copies.clear()
        del before
        yield copied


def count_step(
    host_model: HostModel, batch: int, *, autocast: bool, on_gpu: bool = True
) -> tuple[int, list[int]]:
    """Count a forward and a backward pass, with weights and gradients, without the optimizer.

    The model is as `without_memory` makes it. Autocast follows the rules of a GPU, or those of a
    CPU.

    Returns the bytes that are kept from the forward to the backward pass; and the most bytes that
    are held in the forward, and then from each gradient to the next.
    """
    model = host_model.model
    images, texts = host_model.example_batch(batch)
    images = images.to(next(model.parameters()).dtype)
    allocations = Allocations([*model.parameters(), *model.buffers(), images])
    before = allocations.live
    with ExitStack() as stack:
        for weight in model.parameters():
            if weight.requires_grad:
                parameter: Any = weight
                hook = parameter.register_post_accumulate_grad_hook(lambda _: allocations.mark())
                stack.callback(hook.remove)
        if autocast and on_gpu:
            for owner, name in IN_FLOAT32:
                stack.enter_context(replaced(owner, name, _in_float32(getattr(owner, name))))
        stack.enter_context(allocations)
        with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
            loss = host_model.loss(images, texts)
        kept = allocations.live - before
        allocations.mark()
        torch.autograd.backward(loss)
        allocations.mark()
    model.zero_grad(set_to_none=True)
    return kept, allocations.peaks


def _in_float32(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def wide(x: Tensor, *args: Any, **options: Any) -> Tensor:
        if not torch.is_autocast_enabled("cpu") or x.dtype is not torch.bfloat16:
            return function(x, *args, **options)
        return function(x.float(), *args, **options)

    return wide


def weight_bytes(model: nn.Module) -> tuple[int, int, int]:
    """Count the bytes of weights and buffers, of the trained ones, and of the largest of these."""
    sizes, trained = {}, {}
    for tensor in (*model.parameters(), *model.buffers()):
        storage = tensor.untyped_storage()
        sizes[storage._cdata] = storage.nbytes()
        if tensor.requires_grad:
            trained[storage._cdata] = storage.nbytes()
    return sum(sizes.values()), sum(trained.values()), max(trained.values())
