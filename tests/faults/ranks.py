"""What one of several processes (gloo) does; `test_processes.py` starts it by torchrun.

With `all` it tries every reducer at every phase of a schedule in every way; without, a part. Rank 0
prints a line that begins with "right: " for each step that equals that of one process.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import open_clip
import torch
from conftest import TINY
from open_clip.loss import ClipLoss, CoCaLoss, SigLipLoss
from torch import Tensor
from torch import distributed as dist
from torch.distributed import fsdp
from torch.distributed.algorithms._checkpoint import checkpoint_wrapper as checkpointing
from torch.nn.parallel import DistributedDataParallel

import elip_plugin
from benchmarks.faults.kept import DRAWN
from elip_plugin.reducers import reducers

BATCH = 8
UNEVEN = {2: (6, 2), 4: (3, 2, 2, 1)}
"""Pictures of each rank, by the number of ranks."""

CONFIGS: dict[str, dict[str, Any]] = {
    **{name: {"reducer": name} for name in reducers()},
    "evit, until": {"reducer": "evit", "until": 3},
}
PHASES = {"all tokens": 0, "in the warmup": 2, "pruned": 5, "the unpruned end": 9}
"""Steps of ten, by where they are in the schedule."""

torch.manual_seed(1)
IMAGES = torch.randn(BATCH, 3, 64, 64).double()
TEXTS = torch.randint(1, 49000, (BATCH, 24))

Loss = Callable[[dict[str, Any]], Tensor]
Step = tuple[Tensor, list[Tensor]]


class Chance:
    """Numbers that a picture draws, whichever process and batch it is in."""

    rows: Sequence[int] = range(BATCH)

    def draw(self, batch: int, tokens: int, device: torch.device) -> Tensor:
        numbers = torch.rand(BATCH, tokens, generator=torch.Generator().manual_seed(tokens))
        return numbers[list(self.rows)]


CHANCE = Chance()


def clip(name: str, bias: float | None = None) -> tuple[Any, Any]:
    """A model in double precision: products round by batch size, which could turn a near tie."""
    torch.manual_seed(0)
    small = {**TINY, "vision_cfg": {**TINY["vision_cfg"], "layers": 4}}
    model = open_clip.CLIP(**small, init_logit_bias=bias, output_dict=True).double().train()
    return model, pruned(model, name)


def coca(name: str) -> tuple[Any, Any]:
    import family

    model = family.build(open_clip.get_model_config("coca_ViT-B-32")).double().train()
    torch.manual_seed(0)
    with torch.no_grad():  # it leaves a part of its weights as they lay in memory
        for parameter in model.parameters():
            parameter.normal_(std=0.1)
    return model, pruned(model, name)


def pruned(model: Any, name: str) -> Any:
    config = {**CONFIGS[name], "warmup": 0.4, "final_unpruned": 0.2}
    if name == "pool":
        del config["warmup"]
    else:
        until = {"until": config.pop("until")} if "until" in config else {}
        config["stages"] = [{"block": 1, "lookahead": 1, "keep": 0.5, **until}]
    if name == "cluster":
        config["stages"][0]["block"] = 0
    return elip_plugin.apply(model, config)


def shard(model: Any) -> Any:
    for block in model.visual.transformer.resblocks:
        fsdp.fully_shard(block)
    scalars = {p for p in model.parameters() if p.ndim == 0}  # which it refuses
    fsdp.fully_shard(model, ignored_params=scalars)
    return model


def replicate(model: Any, partly: bool = False) -> Any:
    return DistributedDataParallel(model, find_unused_parameters=partly)


def checkpointed(kind: str) -> Callable[[Any], Any]:
    """Sharded, with activations that are computed anew in the backward pass."""

    def wrap(model: Any) -> Any:
        blocks = model.visual.transformer.resblocks
        if kind == "host":
            model.set_grad_checkpointing(True)
        else:
            impl = checkpointing.CheckpointImpl[kind]
            for i, block in enumerate(blocks):
                blocks[i] = checkpointing.checkpoint_wrapper(block, impl)
        return shard(model)

    return wrap


WAYS: dict[str, Callable[[Any], Any]] = {
    "DDP": replicate,
    "DDP, accumulation": replicate,
    "FSDP2": shard,
    "FSDP2, OpenCLIP's checkpointing": checkpointed("host"),
    "FSDP2, re-entrant checkpointing": checkpointed("REENTRANT"),
    "FSDP2, checkpointing that is not re-entrant": checkpointed("NO_REENTRANT"),
}


class Pruned(NamedTuple):
    """A model, wrapped or not, whose every forward adds what its stages keep."""

    net: Any
    handle: Any
    kept: list[Tensor]

    def __call__(self, rows: Sequence[int], texts: bool = True) -> dict[str, Any]:
        """Run it on some rows of the whole batch."""
        CHANCE.rows = rows
        with self.handle.trace() as trace:
            out = self.net(IMAGES[list(rows)], TEXTS[list(rows)] if texts else None)
        self.kept.extend(s.kept if s.groups is None else s.groups for s in trace.stages)
        return {**out}


def accumulate(encode: Pruned, rows: Sequence[int], loss: Loss) -> Tensor:
    """As OpenCLIP's `--accum-freq 2`: all features without gradient, then each part's again."""
    parts = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
    with torch.no_grad():
        known = [encode(part) for part in parts]
    for j, part in enumerate(parts):
        made = [encode(part) if i == j else known[i] for i in range(2)]
        names = ("image_features", "text_features")
        total = loss({**made[j], **{n: torch.cat([each[n] for each in made]) for n in names}})
        total.backward()
    return total


def step(net: Any, handle: Any, rows: Sequence[int], loss: Loss, parts: bool = False) -> Step:
    """A training step; its loss, and what each stage of each forward keeps."""
    encode = Pruned(net, handle, [])
    if parts:
        return accumulate(encode, rows, loss).detach(), encode.kept
    total = loss(encode(rows))
    total.backward()
    return total.detach(), encode.kept


def gradients(model: Any) -> dict[str, Tensor]:
    """All gradients, whole, by the names that the model has without wrappers of its blocks."""
    found = {}
    for name, p in model.named_parameters():
        if p.grad is not None and p.ndim:  # FSDP2 leaves scalars out
            grad = p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad
            found[name.replace("_checkpoint_wrapped_module.", "")] = grad
    return found


def own(rank: int, world: int) -> range:
    return range(BATCH * rank // world, BATCH * (rank + 1) // world)


def mean(value: Tensor) -> float:
    value = value.clone()
    dist.all_reduce(value)
    return value.item() / dist.get_world_size()


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], about: str) -> None:
    assert max(g.abs().max() for g in expected.values()) > 1e-4
    assert expected.keys() <= found.keys(), about
    for name, gradient in expected.items():
        torch.testing.assert_close(
            found[name], gradient, rtol=1e-8, atol=1e-11, msg=f"{about}: {name}"
        )


def assert_same_choices(own_kept: list[Tensor], kept: list[Tensor], rows: range, way: str) -> None:
    """Each picture keeps what it keeps in one process; with accumulation, in both passes."""
    if "accumulation" in way:
        stages = len(kept)
        halves = rows[: len(rows) // 2], rows[len(rows) // 2 :]
        kept = [kept[i][list(half)] for half in halves * 2 for i in range(stages)]
    else:
        kept = [stage[list(rows)] for stage in kept]
    assert len(own_kept) == len(kept), (len(own_kept), len(kept))
    assert all(map(torch.equal, own_kept, kept)), way


def as_one(
    about: str,
    make: Callable[[], tuple[Any, Any]],
    at: int,
    ways: Sequence[str],
    alone: Loss,
    gathered: Loss,
) -> Iterator[str]:
    """Try one step in some ways; loss, gradients and choices are those of one process."""
    rows = own(dist.get_rank(), dist.get_world_size())
    model, handle = make()
    handle.update_progress(at, 10)
    loss, kept = step(model, handle, range(BATCH), alone)
    expected = gradients(model)
    for way in ways:
        model, handle = make()
        handle.update_progress(at, 10)
        net = WAYS[way](model)
        found, own_kept = step(net, handle, rows, gathered, "accumulation" in way)
        if "accumulation" not in way:  # where each part's loss has other features without gradient
            assert abs(mean(found) - loss.item()) < 1e-10, (about, way, mean(found), loss.item())
        assert_same_choices(own_kept, kept, rows, f"{about}, {way}")
        assert_close(gradients(model), expected, f"{about}, {way}")
        yield f"{about}, {way}"


def clip_losses(local: bool) -> tuple[Loss, Loss]:
    rank, world = dist.get_rank(), dist.get_world_size()
    alone = ClipLoss()
    gathered = ClipLoss(local_loss=local, gather_with_grad=True, rank=rank, world_size=world)
    return partial(_call, alone), partial(_call, gathered)


def _call(loss: Any, out: dict[str, Any]) -> Tensor:
    names = ("image_features", "text_features", "logit_scale", "logit_bias")
    return loss(**{name: out[name] for name in names if name in out})


def every_reducer(everything: bool) -> Iterator[str]:
    """Every reducer, phase and way; or each of them at least once."""
    losses = clip_losses(local=True)
    pairs = itertools.product(CONFIGS, PHASES) if everything else _some()
    ways = itertools.cycle(WAYS)
    for name, phase in pairs:
        tried = [*WAYS] if everything else [next(ways)]
        yield from as_one(f"{name}, {phase}", partial(clip, name), PHASES[phase], tried, *losses)


def _some() -> Iterator[tuple[str, str]]:
    yield from ((name, "pruned") for name in CONFIGS)
    yield from (("elip", phase) for phase in PHASES)
    yield from (("tome", "pruned"), ("elip", "pruned"), ("unique", "pruned"))


def other_losses(everything: bool) -> Iterator[str]:
    """The whole matrix of logits in each process, SigLIP's loss in neighbors' turns, CoCa's."""
    rank, world = dist.get_rank(), dist.get_world_size()
    names, ways = (("elip", "tome"), ("DDP", "FSDP2")) if everything else (("elip",), ("DDP",))
    for name in names:
        whole = clip_losses(local=False)
        yield from as_one(f"{name}, whole logits", partial(clip, name), 5, ways, *whole)
        for kind in ("bidir", "shift", "reduce", "gather") if everything else ("bidir",):
            sigmoid = SigLipLoss(rank=rank, world_size=world, dist_impl=kind)
            siglip = [partial(_call, each) for each in (SigLipLoss(), sigmoid)]
            make = partial(clip, name, bias=-2.0)
            yield from as_one(f"{name}, SigLIP's loss, {kind}", make, 5, ways, *siglip)


def coca_losses(everything: bool) -> Iterator[str]:
    if not everything:
        return
    global IMAGES, TEXTS
    before = IMAGES, TEXTS
    torch.manual_seed(1)
    IMAGES = torch.randn(BATCH, 3, 224, 224).double()
    TEXTS = torch.randint(1, 99, (BATCH, 12))
    rank, world = dist.get_rank(), dist.get_world_size()
    options = {"local_loss": True, "gather_with_grad": True, "rank": rank, "world_size": world}
    losses = [CoCaLoss(2.0, 1.0), CoCaLoss(2.0, 1.0, **options)]
    coca_loss = [lambda out, each=each: sum(each(**out)) for each in losses]
    for name in ("elip", "tome"):
        yield from as_one(
            f"{name}, CoCa's loss", partial(coca, name), 5, ("DDP", "FSDP2"), *coca_loss
        )
    IMAGES, TEXTS = before


def squares(out: dict[str, Any]) -> Tensor:
    """A loss that needs no other process, summed over pictures."""
    image = torch.arange(32.0, dtype=torch.float64) @ out["image_features"].T
    text = out.get("text_features")
    return image.square().sum() + out["logit_scale"] + (0 if text is None else text[:, ::3].sum())


def uneven(everything: bool) -> Iterator[str]:
    """Ranks with other numbers of pictures, without text, or at another step of the schedule."""
    rank, world = dist.get_rank(), dist.get_world_size()
    ends = [0, *itertools.accumulate(UNEVEN[world])]
    rows = range(ends[rank], ends[rank + 1])
    cases = {
        "uneven batches": (lambda r: True, lambda r: 5),
        "a rank without text": (lambda r: r < world - 1, lambda r: 5),
        "a rank at another step": (lambda r: True, lambda r: 5 if r < world - 1 else 2),
    }
    for name in CONFIGS if everything else ("elip",):
        for about, (has_text, at) in cases.items():
            model, handle = clip(name)
            for r in range(world):
                handle.update_progress(at(r), 10)
                part = range(ends[r], ends[r + 1])
                squares(Pruned(model, handle, [])(part, has_text(r))).backward()
            expected = gradients(model)
            for way in ("DDP", "FSDP2"):
                # Where a rank leaves weights out, FSDP2's processes wait for each other.
                if way == "FSDP2" and about == "a rank without text":
                    continue
                model, handle = clip(name)
                handle.update_progress(at(rank), 10)
                net = replicate(model, partly=True) if way == "DDP" else shard(model)
                encode = Pruned(net, handle, [])
                (world * squares(encode(rows, has_text(rank)))).backward()
                assert_close(gradients(model), expected, f"{name}, {about}, {way}")
                yield f"{name}, {about}, {way}"


def main(everything: bool) -> None:
    dist.init_process_group("gloo")
    modules = [sys.modules[f"elip_plugin.reducers.{name}"] for name in DRAWN]
    patches = [mock.patch.object(module, "draw", CHANCE.draw) for module in modules]
    for patch in patches:
        patch.start()
    for law in (every_reducer, other_losses, coca_losses, uneven):
        for about in law(everything):
            if dist.get_rank() == 0:
                print(f"right: {about}", flush=True)
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # now and then a thread of some library aborts a process at its end


if __name__ == "__main__":
    main("all" in sys.argv[1:])
