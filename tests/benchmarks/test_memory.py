"""The memory of a step: counted without any, beside what a real step allocates."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from benchmarks.machine.allocations import Allocations, without_memory
from benchmarks.machine.counting import StepMemory, count_memory, parse_bytes, turn_on_checkpointing
from elip_plugin import create
from elip_plugin.errors import ConfigError, UnsupportedModelError
from elip_plugin.hosts.base import HostModel
from elip_plugin.measure.counts import saved_bytes
from elip_plugin.measure.variants import PASSES, Variant, make_variants

TINY = "ViT-tiny"
WAYS = [(p, c, v) for p in ("fp32", "bf16") for c in (False, True) for v in ("full", "fast")]


@pytest.fixture(scope="module")
def tiny() -> Any:
    pytest.importorskip("open_clip")
    return create(f"elip-{TINY}"), create(f"elip-{TINY}", device="meta")


def peak_bytes(step: Callable[[], object]) -> int:
    """Measure the most that a call has allocated at any moment, beyond what was there."""
    with torch.profiler.profile(profile_memory=True) as profiler:
        step()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def make_real(
    host_model: HostModel, name: str, precision: str, checkpoint: bool, batch: int
) -> Any:
    """Make a variant with memory, which shares the weights."""
    (made,) = make_variants(host_model, [name], batch=batch, precision=precision).values()
    if checkpoint:  # of a copy: it cannot be turned off everywhere
        model = made.host_model.model
        shared = {id(t): t for t in (*model.parameters(), *model.buffers())}
        made = replace(
            made, host_model=replace(made.host_model, model=copy.deepcopy(model, shared))
        )
        turn_on_checkpointing(made.host_model)
    return made


def real_peak(made: Variant, counted: StepMemory) -> int:
    """Measure the peak of a real step, once AdamW's states are there."""
    optimizer = torch.optim.AdamW(made.host_model.model.parameters(), foreach=False)
    step = partial(PASSES["step"].run, made, optimizer)
    step()
    optimizer.zero_grad(set_to_none=True)
    there = counted.weights + counted.states + made.images.nbytes
    return there + peak_bytes(step)


def check(real: HostModel, meta: HostModel, way: tuple[str, bool, str], batch: int) -> None:
    precision, checkpoint, name = way
    counted = count_memory(
        meta, variant=name, precision=precision, checkpointing=checkpoint, on_gpu=False
    )
    made = make_real(real, name, precision, checkpoint, batch)
    assert counted.peak_at(batch) == pytest.approx(real_peak(made, counted), rel=0.1)
    if not checkpoint:
        kept = saved_bytes(made.loss, real.model.parameters())
        # The images are there before, and are kept for the first convolution.
        assert counted.kept_at(batch) + made.images.nbytes == pytest.approx(kept, rel=0.1)


@pytest.mark.parametrize("way", [WAYS[0], WAYS[1], WAYS[3]])
def test_the_count_is_what_a_step_allocates(tiny: Any, way: tuple[str, bool, str]) -> None:
    check(*tiny, way, batch=64)  # so many that activations are most of it


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_open_clip_in_every_way(tiny: Any, way: tuple[str, bool, str]) -> None:
    check(*tiny, way, batch=48)


def make_siglip(device: str) -> HostModel:
    """Make a small SigLIP: timm's tower with map pooling, the texts of the tiny model."""
    import open_clip

    from elip_plugin import apply
    from elip_plugin.hosts.open_clip.factory import OpenClipModel

    config = open_clip.get_model_config(TINY)
    timm = {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "map", "timm_proj": "none"}
    vision = {"image_size": 224, **timm}
    options = {"init_logit_bias": -10, "output_dict": True}
    with torch.device(device):
        model = open_clip.CustomTextCLIP(192, vision, config["text_cfg"], **options)
    apply(model, "paper")
    return OpenClipModel(TINY, model, (14, 14), (0, 0, 0), (1, 1, 1))


@pytest.mark.slow
@pytest.mark.parametrize("way", [WAYS[0], WAYS[3], WAYS[5]])
def test_a_siglip_tower_of_timm(way: tuple[str, bool, str]) -> None:
    pytest.importorskip("open_clip")
    pytest.importorskip("timm.layers")
    check(make_siglip("cpu"), make_siglip("meta"), way, batch=8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "way"),
    [("albef_pretrain", WAYS[3]), ("albef_pretrain", WAYS[5]), ("blip_pretrain", WAYS[0])],
)
def test_lavis(arch: str, way: tuple[str, bool, str]) -> None:
    pytest.importorskip("lavis")
    name = f"elip_{arch}:openmoji"
    check(create(name), create(name, device="meta"), way, batch=16)


def test_a_storage_counts_once_and_until_it_is_freed() -> None:
    weight = torch.zeros(100)
    with Allocations([weight]) as allocations:
        view = weight.view(10, 10)[2:]
        assert allocations.live == 400
        other = view + 1
        assert allocations.live == 400 + 320
        allocations.mark()
        del other
        assert allocations.live == 400
        weight.add_(1)
        allocations.mark()
    assert allocations.peaks == [720, 720]


def test_the_model_counted_stays_as_it_is(tiny: Any) -> None:
    _, meta = tiny
    with without_memory(meta, torch.bfloat16) as copied:
        assert {p.dtype for p in copied.model.parameters()} == {torch.bfloat16}
    assert all(p.is_meta and p.dtype is torch.float32 for p in meta.model.parameters())


def test_half_the_bytes_in_pure_bf16_and_fused_attention_keeps_no_square(tiny: Any) -> None:
    _, meta = tiny
    wide, half = (count_memory(meta, variant="full", precision=p) for p in ("fp32", "pure_bf16"))
    assert half.weights == pytest.approx(wide.weights / 2, rel=0.01)
    assert half.kept_at(64) == pytest.approx(wide.kept_at(64) / 2, rel=0.03)
    large = count_memory(create(TINY, image_size=128, device="meta"), variant="full")
    per_pair = [m.kept_at(1) - m.kept_at(0) for m in (wide, large)]
    assert per_pair[1] < 4 * per_pair[0]  # four times the patches


def test_lines_through_the_counted_batches() -> None:
    made = StepMemory(100, 10, 1, 5, kept=(8, 128), peaks=((110, 118), (710, 178)))
    assert made.kept_at(10) == 20
    assert made.peak_at(4) == 20 + 119  # the update: weights, gradients, 5, and 4 images
    assert made.peak_at(64) == 20 + 710
    assert made.largest(730) == 64 and made.largest(729) == 63 and made.largest(100) == 0


def test_faults(tiny: Any) -> None:
    _, meta = tiny
    with pytest.raises(ConfigError, match=r"--precision .*'fp8'.* not known"):
        count_memory(meta, variant="full", precision="fp8")
    with pytest.raises(UnsupportedModelError, match="no gradient checkpointing"):
        turn_on_checkpointing(replace(meta, model=torch.nn.Identity()))


def test_amounts_of_memory() -> None:
    assert parse_bytes("24GiB") == 24 * 2**30
    assert parse_bytes("1.5 MB") == 1_500_000
    for wrong in ("24", "1.2.3GiB", "a GiB"):
        with pytest.raises(ConfigError, match="24GiB"):
            parse_bytes(wrong)
