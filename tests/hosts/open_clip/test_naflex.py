"""timm's NaFlexVit: images with different numbers of patches, padded to one length."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from recorders import recorded_lengths
from torch import Tensor

import elip_plugin
from elip_plugin.core.select import Selection
from elip_plugin.errors import GuideError, UnsupportedModelError
from elip_plugin.patching.install import find_pruner
from elip_plugin.reducers import find_reducer, reducers

pytest.importorskip("open_clip")
pytest.importorskip("timm.models.naflexvit")

from family import TIMM, build

pytestmark = pytest.mark.skipif(not TIMM, reason="this environment's timm is too old for OpenCLIP")

NAMES = {
    "siglip": ("naflexvit_base_patch16_siglip", "map", "none"),
    "gap": ("naflexvit_base_patch16_gap", "", "linear"),
    "token": ("naflexvit_base_patch16_siglip", "token", "linear"),
    "swiglu": ("naflexvit_base_patch16_map", "map", "linear"),
    "rotary": ("naflexvit_base_patch16_gap", "avg", "linear"),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "swiglu": {"swiglu_mlp": True},
    "rotary": {"rope_type": "axial"},
}
KINDS = tuple(NAMES)
GRIDS = ((6, 5), (3, 8), (4, 4), (2, 9))  # rows and columns
COUNTS = (30, 24, 16, 18)  # of patches; images of the smallest number come first
SIDE = 8  # pixels of a patch
TEXT = 12
REDUCERS = [name for name, reducer in reducers().items() if "patch_embed" not in reducer.needs]


def make(kind: str, elip: Any = None, **timm: Any) -> Any:
    """A small model of a kind, in training mode, pruned if there is a section."""
    name, pool, proj = NAMES[kind]
    vision = {"timm_model_name": name, "timm_pool": pool, "timm_proj": proj, "image_size": 48}
    config: dict[str, Any] = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": {}}
    options = {"depth": 6, "patch_size": SIDE, "class_token": kind == "token"}
    options |= {**OPTIONS.get(kind, {}), **timm}
    model = build(config if elip is None else {**config, "elip": elip}, **options)
    with torch.no_grad():
        for name, parameter in model.visual.named_parameters():
            if parameter.ndim > 1 or "ls" in name:
                parameter.normal_(std=0.3)  # so that tokens differ
    return model


def config_of(reducer: str, **more: Any) -> dict[str, Any]:
    """Two stages, of which the second also sees what the first merged."""
    ahead = 2 if find_reducer(reducer).looks_ahead else 1
    stages = [
        {"block": 1, "lookahead": ahead, "keep": 0.7},
        {"block": 3, "lookahead": ahead, "keep": 0.4},
    ]
    how: dict[str, Any] = {"eval_mode": "image", "text_weight": 0.0}
    if find_reducer(reducer).text_alone:  # cannot choose without a text
        how = {"eval_mode": "text", "text_weight": 1.0, "guide_source": "batch"}
    return {"reducer": reducer, "stages": stages, **how, **more}


def pictures(seed: int = 1) -> list[Tensor]:
    """Images [1, 3, height, width] of different shapes."""
    generator = torch.Generator().manual_seed(seed)
    sides = [(rows * SIDE, columns * SIDE) for rows, columns in GRIDS]
    return [torch.randn(1, 3, *size, generator=generator, dtype=torch.float64) for size in sides]


def padded(images: list[Tensor], length: int = 0) -> dict[str, Tensor]:
    """The batch that a NaFlex loader makes of images."""
    parts = []
    for image in images:
        grid = image[0].unfold(1, SIDE, SIDE).unfold(2, SIDE, SIDE)  # [3, rows, columns, ., .]
        rows, columns = grid.shape[1:3]
        coords = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
        parts.append((grid.permute(1, 2, 3, 4, 0).reshape(rows * columns, -1), coords))
    length = max(length, *(len(patches) for patches, _ in parts))
    fill = [length - len(patches) for patches, _ in parts]
    pad = torch.nn.functional.pad
    return {
        "patches": torch.stack([pad(p, (0, 0, 0, n)) for (p, _), n in zip(parts, fill)]),
        "patch_coord": torch.stack([pad(c, (0, 0, 0, n)) for (_, c), n in zip(parts, fill)]),
        "patch_valid": torch.stack([torch.arange(length) < len(p) for p, _ in parts]),
    }


def captions() -> Tensor:
    return torch.randint(1, 99, (len(GRIDS), TEXT))


@pytest.fixture(autouse=True)
def drawn_by_column(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is drawn for a token depends on its number alone, not on the batch or its length."""
    numbers = torch.rand(1, 200, generator=torch.Generator().manual_seed(3))

    def draw(batch: int, tokens: int, device: torch.device) -> Tensor:
        return numbers[:, :tokens].expand(batch, -1)

    for module in ("random", "gumbel"):
        monkeypatch.setattr(f"elip_plugin.reducers.{module}.draw", draw)


def close(first: Tensor, second: Tensor, kind: str = "") -> None:
    # timm keeps rotations in float32.
    atol = 1e-6 if kind == "rotary" else 1e-9
    torch.testing.assert_close(first, second, rtol=0, atol=atol)


BACK_AT_3 = [{"block": 1, "lookahead": 1, "keep": 0.5, "until": 3}]
CASES = [
    *((kind, config_of(name)) for kind in KINDS for name in REDUCERS),
    *(("gap", config_of(name, merge=False)) for name in REDUCERS),
    *(
        (kind, config_of(n, stages=[{"block": 1, "lookahead": 1, "keep": 0.5, "until": 4}]))
        for kind in ("siglip", "token")
        for n in REDUCERS
        if find_reducer(n).returns
    ),
    *(  # a stage after the block where the tokens came back, and right there
        ("siglip", config_of(n, stages=[*BACK_AT_3, {"block": b, "lookahead": 1, "keep": 0.4}]))
        for b in (3, 4)
        for n in REDUCERS
        if find_reducer(n).returns
    ),
    ("siglip", {"preset": "paper", "eval_mode": "image", "text_weight": 0.0}),
    ("siglip", {"preset": "half", "eval_mode": "image"}),
]


@pytest.mark.parametrize(("kind", "elip"), CASES)
def test_an_image_is_pruned_in_a_batch_as_by_itself(kind: str, elip: Any) -> None:
    """So padding is never kept before a patch, and the keep ratio is one of an image's patches."""
    model = make(kind, depth=12 if "preset" in elip else 6).double().eval()
    images = pictures()
    with torch.no_grad():
        whole = torch.cat([model.encode_image(image) for image in images])
        close(model.encode_image(padded(images)), whole, kind)  # of the host itself
    elip_plugin.apply(model, elip)
    texts = torch.randn(3, find_pruner(model).shape.width, dtype=torch.float64)
    with torch.no_grad(), find_pruner(model).asked(guide=texts):
        alone = torch.cat([model.encode_image(image) for image in images])
        assert not torch.allclose(alone, whole, atol=1e-4)
        for length in (0, 36, 64):
            close(model.encode_image(padded(images, length)), alone, kind)


@pytest.mark.parametrize("block", [3, 4])
@pytest.mark.parametrize("reducer", [n for n in REDUCERS if find_reducer(n).returns])
def test_an_image_that_a_stage_leaves_alone_has_the_tokens_that_came_back(
    reducer: str, block: int
) -> None:
    """Two of the images have too few patches for the second stage, right where the first ends."""
    model = make("siglip").double().eval()
    first = {"block": 1, "lookahead": 1, "keep": 10, "until": 3}
    handle = elip_plugin.apply(
        model, config_of(reducer, stages=[first, {"block": block, "lookahead": 1, "keep": 17}])
    )
    images, texts = pictures(), torch.randn(3, find_pruner(model).shape.width, dtype=torch.float64)
    with torch.no_grad(), find_pruner(model).asked(guide=texts):
        alone = []
        for image in images:
            with recorded_lengths(model.visual.trunk.blocks) as lengths:
                alone.append(model.encode_image(padded([image], 36)))
            patches = image[0, 0].numel() // SIDE**2
            left = min(patches, handle.plan.tokens[-1])
            assert lengths[-1] == left and lengths[1:3] == [10, 10]
        for length in (0, 64):
            close(model.encode_image(padded(images, length)), torch.cat(alone))


@pytest.mark.parametrize("reducer", ["elip", "tome"])
def test_a_schedule_holds_for_each_image(reducer: str) -> None:
    model = make("siglip", config_of(reducer, warmup=0.5)).double()
    handle, lengths = elip_plugin.find_handle(model), []
    for step in range(4):
        handle.update_progress(step, 8)
        images = pictures()
        with torch.no_grad(), recorded_lengths(model.visual.trunk.blocks) as seen:
            batch = model.encode_image(padded(images, 36))
        lengths.append(seen[-1])
        with torch.no_grad():
            close(batch, torch.cat([model.encode_image(image) for image in images]))
    assert lengths == sorted(lengths, reverse=True) and len(set(lengths)) > 2


def test_patch_dropout_of_the_host_comes_first() -> None:
    """What it drops has no say, nor has padding; every other patch has."""
    model = make("siglip", config_of("elip"), patch_drop_rate=0.5).double()
    batch, left = padded(pictures(), 36), list[Tensor]()
    model.visual.trunk.patch_drop.register_forward_hook(lambda m, args, out: left.append(out[1]))

    def encode(change: Tensor | None = None) -> Tensor:
        torch.manual_seed(0)
        patches = batch["patches"]
        moved = (
            patches if change is None else torch.where(change.unsqueeze(2), 1 - patches, patches)
        )
        return model.encode_image({**batch, "patches": moved}).detach()

    with recorded_lengths(model.visual.trunk.blocks) as lengths:
        features = encode()
    assert lengths[:: len(lengths) // 4] == [8, 9, 12, 15] and lengths[-1] < 9
    present = torch.zeros_like(batch["patch_valid"])
    for count, places in zip(sorted(COUNTS), left):
        present[COUNTS.index(count), places[0]] = True
    assert torch.equal(encode(~present), features)
    assert (encode(present) != features).any(dim=1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_all_tokens_kept_give_the_base_models_features(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(kind).double().eval()
    batch = padded(pictures(), 40)
    with torch.no_grad():
        base = model.encode_image(batch)
    elip_plugin.apply(model, config_of("elip"))

    def keep_all(self: Any, x: Tensor, stage: Any, context: Any) -> Selection:
        every = torch.arange(x.shape[1] - context.prefix).expand(len(x), -1)
        return Selection(every, every[:, :0], None)

    monkeypatch.setattr(type(find_reducer("elip")), "decide", keep_all)
    with torch.no_grad():
        close(model.encode_image(batch), base)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reducer", REDUCERS)
def test_training_has_the_planned_lengths_and_gradients(kind: str, reducer: str) -> None:
    model = make(kind).double()
    batch, text = padded(pictures(), 36), captions()
    before = model.eval()(batch, text)["image_features"]
    weight = 0.5 if find_reducer(reducer).reads_text else 0.0
    weight = 1.0 if find_reducer(reducer).text_alone else weight
    handle = elip_plugin.apply(model, config_of(reducer, text_weight=weight, eval_mode="full"))
    plan_for, gradients = find_pruner(model).plan_for, []
    planned = [tokens for count in sorted(COUNTS) for tokens in plan_for(count).tokens]
    for checkpointed in (False, True):
        model.train().zero_grad()
        model.set_grad_checkpointing(checkpointed)
        with recorded_lengths(model.visual.trunk.blocks) as lengths:
            out = model(batch, text)
        (out["image_features"] @ out["text_features"].T).square().sum().backward()
        gradients.append({n: p.grad for n, p in model.visual.named_parameters()})
        assert lengths[: len(planned)] == planned  # in the backward pass some run again
    for name, gradient in gradients[0].items():
        assert name.endswith("bias") or (gradient is not None and gradient.any()), name
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)
    assert torch.equal(model.eval()(batch, text)["image_features"], before)
    handle.remove()
    assert torch.equal(model(batch, text)["image_features"], before)


def test_the_caption_chooses() -> None:
    model = make("token", config_of("elip", text_weight=0.9)).double()
    batch, text = padded(pictures(), 36), captions()
    first = model(batch, text)["image_features"]
    assert not torch.allclose(model(batch, text.flip(0))["image_features"], first)


def test_bf16_autocast_and_weights() -> None:
    """What is computed is that of float32, as near as the unpruned model's is."""
    base = make("siglip")
    with torch.no_grad():  # of a size as in a trained model, so that rounding stays small
        for name, parameter in base.visual.named_parameters():
            parameter.mul_(0.2 if parameter.ndim > 1 and "embed" not in name else 1)
    batch, text = padded(pictures(), 36), captions()
    exact = {**batch, "patches": batch["patches"].float()}
    low = {**batch, "patches": batch["patches"].bfloat16()}
    for reducer in ("tome", "elip", "evit"):
        model = copy.deepcopy(base)
        elip_plugin.apply(model, config_of(reducer))
        with torch.no_grad():
            expected = model(exact, text)["image_features"]
            with torch.autocast("cpu", torch.bfloat16):
                mixed = model(exact, text)["image_features"]
            pure = model.bfloat16()(low, text)["image_features"]
        for found in (mixed, pure):  # a near tie may turn in one of the images
            cosines = torch.cosine_similarity(found.float(), expected)
            assert cosines.median() > 0.99 and cosines.min() > 0.5, reducer
        assert torch.cosine_similarity(expected.roll(1, 0), expected).max() < 0.9


def test_images_of_a_few_patches_keep_all() -> None:
    model = make("siglip", config_of("elip")).double().eval()
    images = [pictures()[0], torch.randn(1, 3, SIDE, SIDE, dtype=torch.float64)]
    with torch.no_grad():
        both = model.encode_image(padded(images))
        with elip_plugin.find_handle(model).disabled():
            close(both[1:], model.encode_image(images[1]))
        close(both[:1], model.encode_image(images[0]))
    dropping = make("siglip", config_of("elip"), patch_drop_rate=0.5).double()
    with recorded_lengths(dropping.visual.trunk.blocks) as lengths:
        dropping.encode_image(padded([torch.randn(1, 3, 2 * SIDE, 2 * SIDE, dtype=torch.float64)]))
    assert lengths == [2] * 6


def test_what_is_refused() -> None:
    model = make("siglip", config_of("elip"))
    batch = {k: v.float() if v.is_floating_point() else v for k, v in padded(pictures()).items()}
    handle = elip_plugin.find_handle(model)
    with handle.trace() as trace:
        model.encode_image(torch.randn(1, 3, 48, 48))
        assert trace.sources.shape[2] == 36
        with pytest.raises(UnsupportedModelError, match="different numbers of patches cannot be"):
            model.eval().encode_image(batch)
    guided = make("siglip", config_of("elip", text_weight=0.5, eval_mode="full"))
    for rows in (3, 5):
        with (
            pytest.raises(GuideError, match=rf"\({rows}, 32\).*\(4, 32\)"),
            elip_plugin.find_handle(guided).guide(torch.randn(rows, 32)),
        ):
            guided.encode_image(batch)
    for preset in ({"preset": "lowres"}, {"reducer": "cluster"}):
        with pytest.raises(UnsupportedModelError, match="use another reducer"):
            make("siglip", preset)
    with pytest.raises(UnsupportedModelError, match="NaFlexVit with rotary positions of its own"):
        make("siglip", config_of("elip"), rope_type="mixed")
