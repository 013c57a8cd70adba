"""Cluster masking: patches that look alike leave first, on towers of every host."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from recorders import recorded_lengths
from towers import KINDS, make_tower

from elip_plugin import ElipConfig, apply, find_handle
from elip_plugin.errors import ConfigError, PlanError, UnsupportedModelError
from elip_plugin.patching.calls import thread
from elip_plugin.reducers import PlannedStage, StageContext, cluster, find_reducer
from elip_plugin.reducers.pixels import split_patches

IMAGE_EVAL = {"reducer": "cluster", "eval_mode": "image"}


def decide(patches: torch.Tensor, left: int, monkeypatch: Any, numbers: list[float]) -> Any:
    """Decide by one class token and the patches, with given random numbers."""
    count = patches.shape[2] * patches.shape[3]
    drawn = torch.tensor([numbers] * len(patches))
    monkeypatch.setattr(cluster, "draw", lambda batch, tokens, device: drawn)
    stage = PlannedStage(0, 1, left, 1 + count, 1 + left)
    context = StageContext(1, patches=patches)
    x = torch.zeros(len(patches), 1 + count, 4)
    return find_reducer("cluster").decide(x, stage, context)


def test_patches_like_the_anchor_leave_first_then_random_ones(monkeypatch: Any) -> None:
    stripes = torch.tensor([[1.0, -1.0], [1.0, -1.0]])
    dots = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    rows = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    # One anchor of six: patch 4 has the lowest number. Patches 1 and 4 look alike.
    kinds = [dots, stripes, rows, rows, 3 * stripes, dots]
    patches = torch.stack(kinds).view(1, 1, 2, 3, 2, 2)
    numbers = [0.3, 0.9, 0.2, 0.6, 0.1, 0.8]
    for left, kept in ((5, [0, 1, 2, 3, 5]), (4, [0, 2, 3, 5]), (3, [0, 3, 5]), (1, [5])):
        selection = decide(patches, left, monkeypatch, numbers)
        assert selection.kept.tolist() == [kept]
        assert sorted((*kept, *selection.dropped[0].tolist())) == list(range(6))
        assert selection.weights is None


def test_the_mean_colour_counts_as_much_as_the_pixels() -> None:
    grey, red = torch.zeros(3, 2, 2), torch.zeros(3, 2, 2)
    red[0] = 1.0
    texture = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).expand(3, 2, 2)
    patches = torch.stack([red, 2 * red, -red, red + texture, grey]).view(1, 1, 5, 3, 2, 2)
    looks = cluster.describe_patches(patches.permute(0, 3, 1, 2, 4, 5))[0]
    # By hand: red less its mean of 1/3 is (2/3, -1/3, -1/3) four times; its colour is (2, 0, 0).
    expected = torch.tensor([2 / 3] * 4 + [-1 / 3] * 8 + [2.0, 0.0, 0.0])
    torch.testing.assert_close(looks[0], F.normalize(expected, dim=0))
    cosines = looks @ looks[0]
    torch.testing.assert_close(cosines[:3], torch.tensor([1.0, 1.0, -1.0]))
    torch.testing.assert_close(cosines[3], torch.tensor((20 / 3) ** 0.5 / (20 / 3 + 12) ** 0.5))
    assert cosines[4] == 0


def test_patches_are_numbered_row_by_row() -> None:
    images = torch.arange(2 * 3 * 4 * 7.0).view(2, 3, 4, 7)  # a column too many
    flat = split_patches(images, (2, 2)).flatten(4).flatten(2, 3)
    unfolded = F.unfold(images[..., :6], 2, stride=2).view(2, 3, 4, 6).transpose(2, 3)
    assert torch.equal(flat, unfolded)


def reference(images: torch.Tensor, size: int, numbers: torch.Tensor, left: int) -> list[set[int]]:
    """Compute what stays patch by patch, from the pictures."""
    kept = []
    for image, row in zip(images, numbers):
        cuts = [
            image[:, y : y + size, x : x + size]
            for y in range(0, image.shape[1], size)
            for x in range(0, image.shape[2], size)
        ]
        looks = [torch.cat([(c - c.mean()).flatten(), size * c.mean((1, 2))]) for c in cuts]
        anchors = sorted(range(len(cuts)), key=lambda i: float(row[i]))
        anchors = anchors[: max(1, round(0.05 * len(cuts)))]
        alike = [
            any(float(F.cosine_similarity(look, looks[a], dim=0)) > 0.5 for a in anchors)
            for look in looks
        ]
        order = sorted(range(len(cuts)), key=lambda i: (not alike[i], float(row[i])))
        kept.append(set(order[len(cuts) - left :]))
    return kept


def pictures() -> torch.Tensor:
    """Two pictures [2, 3, 64, 64] of two textures each, which differ from patch to patch a bit."""
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(2, 2, 3, 16, 16, generator=generator).repeat(1, 1, 1, 4, 4)
    mask = F.interpolate((torch.rand(2, 1, 4, 4, generator=generator) < 0.4).float(), size=64)
    return torch.where(mask > 0, base[:, 0], base[:, 1]) + 0.3 * torch.randn(
        2, 3, 64, 64, generator=generator
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_host_hands_over_its_pixels(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tower = make_tower(kind)
    model, images = tower.model, pictures()
    names, keys = [type(m) for m in model.modules()], list(model.state_dict())
    model.eval()
    with torch.no_grad():
        before = tower.encode(model, images)
    count = (64 // tower.patch) ** 2
    numbers = torch.rand(2, count, generator=torch.Generator().manual_seed(3))
    monkeypatch.setattr(cluster, "draw", lambda batch, tokens, device: numbers)
    handle = apply(model, IMAGE_EVAL)
    left = handle.plan.num_patches // 2 + 1  # as many as random dropping leaves
    expected = reference(images, tower.patch, numbers, left)
    for training in (True, False):
        model.train(training)
        with torch.no_grad(), handle.trace() as trace:
            pruned = tower.encode(model, images)
        assert [set(row) for row in trace.stages[0].kept.tolist()] == expected
    assert not torch.equal(pruned, before)
    # Copies prune by their own pictures.
    copies = [copy.deepcopy(model)]
    if kind != "LAVIS CLIP":  # which by itself cannot be pickled
        copies.append(pickle.loads(pickle.dumps(model)))
    for copied in copies:
        with torch.no_grad(), find_handle(copied).trace() as trace:
            tower.encode(copied, torch.randn_like(images))
            assert torch.equal(tower.encode(copied, images), pruned)
        assert [set(row) for row in trace.stages[0].kept.tolist()] == expected
    with torch.no_grad(), handle.disabled():
        assert torch.equal(tower.encode(model, images), before)
    assert thread.innermost is None
    model.train()
    with recorded_lengths(tower.blocks(model), tower.dim) as lengths:
        tower.encode(model, images).sum().backward()
    assert lengths == list(handle.plan.tokens)
    vision = [p for m in tower.blocks(model) for p in m.parameters()]
    assert all(p.grad is not None for p in vision)
    handle.remove()
    assert [type(m) for m in model.modules()] == names and list(model.state_dict()) == keys
    assert not [n for m in model.modules() for n in vars(m) if n.startswith("elip")]
    with torch.no_grad():
        assert torch.equal(tower.encode(model.eval(), images), before)


@pytest.mark.parametrize(
    "other", ["checkpointed", pytest.param("compiled", marks=pytest.mark.slow)]
)
def test_checkpointing_and_compilation_change_nothing(
    other: str, tiny_clip: Any, pairs: Any
) -> None:
    gradients = []
    for way in ("plain", other):
        model = tiny_clip()
        apply(model, {"reducer": "cluster"})
        model.set_grad_checkpointing(way == "checkpointed")
        run = torch.compile(model, backend="eager") if way == "compiled" else model
        torch.manual_seed(5)
        run(*pairs)["image_features"].square().mean().backward()
        gradients.append([p.grad for p in model.visual.parameters()])
        assert thread.innermost is None
    torch.testing.assert_close(gradients[0], gradients[1])


def test_half_is_the_default_and_schedules_hold(tiny_clip: Any) -> None:
    model = tiny_clip()
    handle = apply(model, {"reducer": "cluster", "warmup": 0.5, "final_unpruned": 0.2})
    assert handle.plan.tokens == (34,) * 12
    counts = []
    for step in (0, 4, 6, 9):
        handle.update_progress(step, 10)
        with recorded_lengths(model.visual.transformer.resblocks) as lengths:
            model.encode_image(torch.randn(2, 3, 64, 64))
        counts.append(lengths[0])
        assert thread.innermost is None
    assert counts == [65, 42, 34, 65]


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"preset": "fast"}, r"one stage, at block 0, got stages at blocks \[2, 4, 10\]"),
        ({"stages": [{"block": 1, "lookahead": 1, "keep": 0.5}]}, "one stage, at block 0"),
        ({"text_weight": 0.2}, "reads no text"),
        ({"stages": [{"block": 0, "lookahead": 2, "keep": 0.5}]}, "does not look ahead"),
    ],
)
def test_faults_of_a_config(mapping: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ElipConfig.from_mapping({"reducer": "cluster", **mapping})


def test_faults_of_a_tower(tiny_clip: Any) -> None:
    images = torch.randn(2, 3, 64, 64)
    dropping = tiny_clip(patch_dropout=0.5)
    apply(dropping, {"reducer": "cluster"})
    with pytest.raises(PlanError, match="a token for each patch, but 32 of 8 x 8 are left"):
        dropping.encode_image(images)

    model, other, conv = tiny_clip(), tiny_clip(), torch.nn.Conv2d
    apply(model, {"reducer": "cluster"})
    model.visual.conv1 = conv(3, 32, 8, 8, bias=False)
    with pytest.raises(PlanError, match="did not pass the patch embedding"):
        model.encode_image(images)

    classes = [type(m) for m in other.modules()]
    for embedding, message in (
        (conv(3, 32, 16, 8, bias=False), "only patches side by side"),
        (conv(3, 32, 8, 8, padding=4), "only patches side by side"),
        (torch.nn.Linear(3, 32), "embeds them by Linear"),
    ):
        other.visual.conv1 = embedding
        with pytest.raises(UnsupportedModelError, match=message):
            apply(other, {"reducer": "cluster"})
        assert len(classes) == len(list(other.modules()))
        assert not any(hasattr(m, "elip") for m in other.modules())


def test_a_stem_of_convolutions_is_refused() -> None:
    pytest.importorskip("open_clip")
    pytest.importorskip("timm.layers")
    from family import build

    vision = {"timm_model_name": "vit_base_mci_224", "timm_pool": "token", "timm_proj": None}
    config = {"embed_dim": 32, "vision_cfg": {**vision, "image_size": 64}, "text_cfg": {}}
    model = build(config, img_size=64, depth=2)
    with pytest.raises(UnsupportedModelError, match="no convolution that makes each token"):
        apply(model, {"reducer": "cluster"})
