"""Towers whose blocks are turned by positions at every call, and EVA's without."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from recorders import recorded_lengths

import elip_plugin
from elip_plugin import ElipConfig, plan
from elip_plugin.core.blocks import attention_row, look_ahead
from elip_plugin.core.context import StageContext
from elip_plugin.core.merge import positions_after
from elip_plugin.core.select import Selection
from elip_plugin.errors import UnsupportedModelError
from elip_plugin.patching.install import find_pruner
from elip_plugin.reducers import find_reducer, reducers
from elip_plugin.reducers.pool import upper_left
from elip_plugin.reducers.tome import ToMe, match, merge_inside, merge_pairs

pytest.importorskip("open_clip")

from family import TIMM, build, inputs, stack_of

pytestmark = pytest.mark.skipif(not TIMM, reason="this environment's timm is too old for OpenCLIP")

NAMES = {
    "EVA01": ("eva_giant_patch14_224", "token", None),
    "EVA02": ("eva02_base_patch16_clip_224", "token", None),
    "EVA02-E": ("eva02_enormous_patch14_clip_224", "token", None),
    "PE-Core": ("vit_pe_core_tiny_patch16_384", "map", None),
}
KINDS = tuple(NAMES)
PLACED = ("EVA02", "PE-Core")
MODELS = [
    "EVA01-g-14",
    "EVA01-g-14-plus",
    "EVA02-B-16",
    "EVA02-E-14",
    "EVA02-E-14-plus",
    "EVA02-L-14",
    "EVA02-L-14-336",
    "PE-Core-B-16",
    "PE-Core-bigG-14-448",
    "PE-Core-L-14-336",
    "PE-Core-S-16-384",
    "PE-Core-T-16-384",
]


def make(kind: str, elip: Any = None, size: int = 64, **vision: Any) -> Any:
    """A small model of a kind, in training mode, pruned if there is a section."""
    name, pool, proj = NAMES[kind]
    size = size if "16" in name else size * 14 // 16
    config: dict[str, Any] = {
        "embed_dim": 32,
        "vision_cfg": {
            **{"timm_model_name": name, "timm_pool": pool, "timm_proj": proj, "image_size": size},
            **vision,
        },
        "text_cfg": {},
    }
    return build(config if elip is None else {**config, "elip": elip}, img_size=size, depth=6)


def encode(model: Any, images: torch.Tensor) -> torch.Tensor:
    """Image features; what is drawn is the same each time."""
    torch.manual_seed(5)
    features: torch.Tensor = model.encode_image(images)
    return features


def choosing(monkeypatch: pytest.MonkeyPatch, *made: Any) -> None:
    """Let the reducer `evit` choose what is given, stage by stage, again and again."""
    given = {block: kept for block, kept in made}

    def decide(self: Any, x: torch.Tensor, stage: Any, context: Any) -> Selection:
        kept = given[stage.block].expand(len(x), -1)
        present = torch.arange(x.shape[1] - context.prefix)
        rest = [i for i in present.tolist() if i not in kept[0].tolist()]
        return Selection(kept, torch.tensor([rest]).long().expand(len(x), -1), None)

    monkeypatch.setattr(type(find_reducer("evit")), "decide", decide)


def config_of(*blocks: int, **more: Any) -> dict[str, Any]:
    stages = [{"block": b, "lookahead": 1, "keep": 0.9 - 0.2 * i} for i, b in enumerate(blocks)]
    return {
        **{"reducer": "evit", "stages": stages, "merge": False, "eval_mode": "image"},
        **more,
    }


@pytest.mark.parametrize("kind", KINDS)
def test_all_tokens_in_any_order_give_the_base_models_features(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the positions of the patches go their rotations."""
    model = make(kind).double().eval()
    images = inputs(model)[0].double()
    with torch.no_grad():
        base = encode(model, images)
        whole = model.visual.trunk.forward_features(images)
    patches = model.visual.trunk.patch_embed.num_patches
    prefix = model.visual.trunk.num_prefix_tokens
    elip_plugin.apply(model, config_of(1, 3))
    first, second = torch.randperm(patches), torch.randperm(patches)
    for orders in ((torch.arange(patches),) * 2, (first, second)):
        choosing(monkeypatch, *zip((1, 3), orders))
        with torch.no_grad():
            torch.testing.assert_close(encode(model, images), base, rtol=0, atol=1e-9)
            out = model.visual.trunk.forward_features(images)
        order = orders[0][orders[1]]
        torch.testing.assert_close(out[:, prefix:], whole[:, prefix:][:, order], rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", PLACED)
def test_positions_matter(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The law above can fail: without the positions, another order gives other features."""
    model = make(kind).double().eval()
    stronger(model)
    images = inputs(model)[0].double()
    patches = model.visual.trunk.patch_embed.num_patches
    elip_plugin.apply(model, config_of(1))
    choosing(monkeypatch, (1, torch.randperm(patches)))
    with torch.no_grad():
        right = encode(model, images)
        take, unmoved = StageContext.take, torch.arange(patches).expand(len(images), -1)
        monkeypatch.setattr(StageContext, "take", lambda self, index: take(self, unmoved))
        wrong = encode(model, images)
    assert not torch.allclose(right, wrong, rtol=0, atol=1e-9)


def stronger(model: Any) -> None:
    """Make the attention of random weights, and its layer scale, count."""
    for name, parameter in model.visual.trunk.blocks.named_parameters():
        if "gamma" in name:
            torch.nn.init.ones_(parameter)
        elif parameter.ndim == 2 and "mlp" not in name:
            torch.nn.init.normal_(parameter, std=0.5)


@pytest.mark.parametrize("kind", PLACED)
def test_a_pruned_tower_equals_the_rows_of_the_whole_ones_tables(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two stages, by timm's own blocks with an attention mask over all tokens."""
    model = make(kind).double().eval()
    stronger(model)
    images = inputs(model)[0].double()
    trunk = model.visual.trunk
    patches, prefix = trunk.patch_embed.num_patches, trunk.num_prefix_tokens
    first = torch.randperm(patches)[:12].sort().values
    second = torch.randperm(12)[:7].sort().values
    expected = masked(trunk, images, {1: first, 3: first[second]})
    elip_plugin.apply(model, config_of(1, 3))
    choosing(monkeypatch, (1, first), (3, second))
    with torch.no_grad():
        out = trunk.forward_features(images)
    torch.testing.assert_close(out[:, :prefix], expected[:, :prefix], rtol=0, atol=1e-9)
    left = expected[:, prefix:][:, first[second]]
    torch.testing.assert_close(out[:, prefix:], left, rtol=0, atol=1e-9)


@torch.no_grad()
def masked(trunk: Any, images: torch.Tensor, kept: dict[int, torch.Tensor]) -> torch.Tensor:
    """Run all tokens through timm's blocks; those that left are seen by none."""
    attend = torch.nn.functional.scaled_dot_product_attention
    prefix = trunk.num_prefix_tokens
    hidden = torch.zeros(prefix + trunk.patch_embed.num_patches, dtype=torch.float64)
    count = iter(range(len(trunk.blocks)))

    def attend_masked(q: Any, k: Any, v: Any, attn_mask: Any = None, **kw: Any) -> Any:
        block = next(count)
        if block in kept:
            hidden[prefix:] = float("-inf")
            hidden[prefix + kept[block]] = 0
        mask = hidden if attn_mask is None else attn_mask + hidden
        return attend(q, k, v, attn_mask=mask.expand(1, 1, q.shape[2], -1) if attn_mask is None
                      else mask, **kw)  # fmt: skip

    with mock.patch("torch.nn.functional.scaled_dot_product_attention", attend_masked):
        features: torch.Tensor = trunk.forward_features(images)
    return features


@pytest.mark.parametrize("kind", PLACED)
def test_what_comes_back_comes_back_to_its_position(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(kind).double().eval()
    stronger(model)
    images = inputs(model)[0].double()
    trunk = model.visual.trunk
    with torch.no_grad():
        whole = trunk.forward_features(images)
    elip_plugin.apply(
        model,
        config_of() | {"stages": [{"block": 1, "lookahead": 1, "keep": 0.5, "until": 4}]},
    )
    choosing(monkeypatch, (1, torch.randperm(trunk.patch_embed.num_patches)))
    with torch.no_grad():
        out = trunk.forward_features(images)
    torch.testing.assert_close(out, whole, rtol=0, atol=1e-9)


def entering(model: Any, images: torch.Tensor, kept: torch.Tensor) -> tuple[torch.Tensor, Any]:
    """Tokens at some positions, and what blocks are called with there."""
    trunk, blocks = model.visual.trunk, stack_of(model)
    prefix = trunk.num_prefix_tokens
    seen: list[Any] = []
    hook = blocks[0].register_forward_pre_hook(
        lambda block, args, options: seen.append((*args, options)), with_kwargs=True
    )
    with hook, elip_plugin.find_handle(model).disabled():
        trunk.forward_features(images)
    ((x, options),) = seen
    calling = blocks.elip_calling
    given = {name: options[name] for name in calling.positions}
    positions = calling.positions_for(given, prefix)
    index = kept.expand(len(x), -1)
    rest = x[:, prefix:].gather(1, index.unsqueeze(2).expand(-1, -1, x.shape[2]))
    return torch.cat([x[:, :prefix], rest], dim=1), positions(index) if positions else {}


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_block_in_any_mode_computes_what_its_own_forward_does(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(kind, {"reducer": "tome"}, timm_drop_path=0.3).double()
    stronger(model)
    prefix, block = model.visual.trunk.num_prefix_tokens, stack_of(model)[3]
    x, options = entering(model, inputs(model)[0].double(), torch.tensor([[1, 5, 6, 12]]))
    looked = block(x, run=look_ahead, **options)
    seen: list[Any] = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def record(*args: Any, **kw: Any) -> Any:
        seen.append((*args, kw.get("attn_mask")))
        return attend(*args, **kw)

    model.eval()
    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", record)
    expected = block(x, **options)
    torch.testing.assert_close(looked, expected, rtol=0, atol=1e-12)
    ((q, k, _, bias),) = seen
    logits = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
    rows = (logits if bias is None else logits + bias).softmax(dim=3).mean(dim=1)
    row = block(x, run=attention_row, query=None, **options)
    torch.testing.assert_close(row, rows[:, 0], rtol=0, atol=1e-12)
    sizes = torch.ones(x.shape[:2], dtype=torch.float64)
    out, after, _ = block(
        x, run=merge_inside, how=ToMe(), sizes=sizes, remove=0, prefix=prefix, **options
    )
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    assert torch.equal(after, sizes)


@pytest.mark.parametrize("reducer", reducers())
@pytest.mark.parametrize("kind", PLACED)
def test_every_reducer_trains_a_step(kind: str, reducer: str) -> None:
    base, model = make(kind), make(kind)
    images, texts = inputs(model)
    handle = elip_plugin.apply(model, {"reducer": reducer})
    with recorded_lengths(stack_of(model)) as lengths:
        model(images, texts)["image_features"].square().mean().backward()
    assert lengths == list(handle.plan.tokens) and handle.plan.removed > 0.2
    missing = [n for n, p in model.visual.named_parameters() if p.grad is None]
    assert not missing
    with torch.no_grad():
        expected = encode(base.eval(), images)
        assert torch.equal(encode(model.eval(), images), expected)
        pruner = find_pruner(model)
        mode = "text" if pruner.reducer.text_alone else "image"
        guide = torch.randn(len(images), pruner.shape.width, dtype=images.dtype)
        lengths_of = recorded_lengths(stack_of(model))
        with pruner.asked(eval_mode=mode, guide=guide), lengths_of as lengths:
            encode(model, images)
        assert lengths == list(handle.plan.tokens)
        handle.remove()
        assert [type(m) for m in model.modules()] == [type(m) for m in base.modules()]
        assert [sorted(vars(m)) for m in model.modules()] == [
            sorted(vars(m)) for m in base.modules()
        ]
        assert torch.equal(encode(model, images), expected)


@pytest.mark.parametrize("kind", PLACED)
def test_checkpointing_changes_nothing(kind: str) -> None:
    for reducer in ("elip", "tome"):
        gradients = []
        model = make(kind, {"reducer": reducer, "text_weight": 0.0})
        for checkpointing in (False, True):
            model.visual.set_grad_checkpointing(checkpointing)
            model.zero_grad()
            encode(model, inputs(model)[0]).square().sum().backward()
            gradients.append([p.grad.clone() for p in model.visual.parameters()])
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("kind", PLACED)
def test_schedules_traces_and_other_resolutions(kind: str) -> None:
    model = make(kind, {"preset": "fast", "warmup": 0.5, "final_unpruned": 0.2, "text_weight": 0})
    handle, images = elip_plugin.find_handle(model), inputs(model)[0]
    counts = []
    for step in (0, 3, 6, 9):
        handle.update_progress(step, 10)
        with recorded_lengths(stack_of(model)) as lengths:
            encode(model, images)
        counts.append(sum(lengths))
    assert counts[0] == counts[3] > counts[1] > counts[2]
    prefix = model.visual.trunk.num_prefix_tokens
    with find_pruner(model).asked(eval_mode="image"), handle.trace() as trace, torch.no_grad():
        tokens = model.eval().visual.trunk.forward_features(images)
    assert trace.unmerge(tokens).shape == (2, 16, 32)
    kept = trace.stages[-1].kept
    assert ((kept >= -1) & (kept < 16)).all() and trace.sources is not None
    assert handle.plan.tokens[-1] == prefix + trace.sources.shape[1]
    # What reads all tokens afterwards has them all.
    restored = model.visual.trunk.global_pool != "token"
    assert tokens.shape[1] == (prefix + 16 if restored else handle.plan.tokens[-1])
    model.visual.set_input_size(model.visual.image_size[0] * 3 // 2)
    with find_pruner(model).asked(eval_mode="image"), recorded_lengths(stack_of(model)) as lengths:
        encode(model, inputs(model)[0])
    assert handle.plan.num_patches == 36 and lengths == list(handle.plan.tokens)


def test_patch_dropout_keeps_the_rotations_with_the_patches() -> None:
    model = make("EVA02", {"preset": "fast"}, size=128, patch_dropout=0.5)
    with recorded_lengths(stack_of(model)) as lengths:
        model(*inputs(model))["image_features"].sum().backward()
    assert lengths[0] == 33 and lengths[-1] < 20


def test_a_merged_token_has_the_position_of_the_largest_weight() -> None:
    kept, dropped = torch.tensor([[1, 4], [0, 2]]), torch.tensor([[3, 0, 2], [4, 3, 1]])
    weights = torch.tensor([[0.2, 0.5, 0.3], [0.7, 0.2, 0.1]])
    index = positions_after(Selection(kept, dropped, weights))
    assert index.tolist() == [[1, 4, 0], [0, 2, 4]]
    assert torch.equal(positions_after(Selection(kept, dropped, None)), kept)
    context = StageContext(1, positions=lambda index: {"rope": index})
    for taken in (index, torch.tensor([[2, 0], [1, 2]])):
        context.take(taken)
    origins = context.state.origins
    assert origins is not None and origins.tolist() == [[0, 1], [2, 4]]
    assert context.state.place == {"rope": origins}


@pytest.mark.parametrize("tokens", [8, 9])
def test_merged_pairs_have_the_position_of_the_second_set(tokens: int) -> None:
    x = torch.arange(1.0 + tokens).view(1, -1, 1).expand(2, -1, -1)
    pairs = match(torch.randn(2, 1 + tokens, 3), 3)
    merged, sizes = merge_pairs(x, torch.ones(2, 1 + tokens), pairs)
    left = pairs.left()
    assert left.shape == (2, tokens - 3) == merged[:, 1:, 0].shape
    alone = sizes[:, 1:] == 1
    assert torch.equal(merged[:, 1:, 0][alone], left[alone] + 1.0)
    assert (left[~alone] % 2 == 1).all()  # counted from 0: the second set


def test_pooled_tokens_have_the_offsets_of_their_centres() -> None:
    index = upper_left(2, 4, 6, torch.device("cpu"))
    assert index.tolist() == [[0, 2, 4, 12, 14, 16]] * 2


@pytest.mark.parametrize("name", MODELS)
def test_offered_model_is_built_without_weights_and_planned(name: str) -> None:
    made = elip_plugin.create(f"elip-{name}", device="meta")
    rows, columns = made.grid_size
    shape, paper = find_pruner(made.model).shape, find_pruner(made.model).plan
    assert shape.num_patches == rows * columns and 0.2 < paper.removed < 0.35
    fast = plan(
        ElipConfig.preset("fast"),
        num_patches=shape.num_patches,
        depth=shape.depth,
        prefix=shape.prefix,
    )
    assert 0.2 < fast.removed < 0.5


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("EVA02", lambda trunk: setattr(trunk, "rope_mixed", True), "of its own in each block"),
        ("EVA02", lambda trunk: setattr(trunk, "global_pool", "max"), "pooling 'max' is not"),
        ("EVA01", lambda trunk: setattr(trunk.blocks[2].attn, "gate", torch.nn.Identity()),
         "gated attention"),
        ("PE-Core", lambda trunk: setattr(trunk.blocks[2].attn, "num_kv_groups", 2), "shared by"),
        ("PE-Core", lambda trunk: setattr(trunk.blocks[2].attn.proj_drop, "p", 0.1),
         r"dropout \{.*: 0\.1\}"),
        ("EVA02", lambda trunk: trunk.blocks.__setitem__(2, torch.nn.Identity()),
         "Identity cannot be pruned here"),
    ],
)  # fmt: skip
def test_what_cannot_be_pruned_is_refused(kind: str, change: Any, message: str) -> None:
    model = make(kind)
    change(model.visual.trunk)
    with pytest.raises(UnsupportedModelError, match=message):
        elip_plugin.apply(model)


@pytest.mark.slow
@pytest.mark.parametrize("kind", PLACED)
def test_compiles_to_one_graph(kind: str) -> None:
    model = make(kind, "fast").eval()
    images, texts = inputs(model)
    with find_pruner(model).asked(eval_mode="image"):
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(
            compiled(images, texts)["image_features"], model(images, texts)["image_features"]
        )
