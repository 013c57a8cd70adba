"""Laws of a pruned OpenCLIP model: when it prunes, when it does not, and what it leaves behind."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from recorders import recorded_choices, recorded_lengths
from torch import Tensor

import elip_plugin
from elip_plugin import ElipConfig, Stage, apply, find_handle
from elip_plugin.core.blocks import attention_row, look_ahead
from elip_plugin.errors import ConfigError, GuideError, PlanError, UnsupportedModelError
from elip_plugin.patching.calls import find
from elip_plugin.patching.forward import Forward
from elip_plugin.patching.install import find_pruner

open_clip = pytest.importorskip("open_clip")

Pairs = tuple[Tensor, Tensor]
Make = Callable[..., Any]
PLANNED = [65, 65, 59, 59, 43, 43, 43, 43, 43, 43, 27, 27]


def blocks(model: Any) -> Any:
    return getattr(model, "visual", model).transformer.resblocks


def snapshot(model: Any) -> list[Any]:
    """Everything about a model's modules that patching could leave behind."""
    state = []
    for name, module in model.named_modules():
        hooks = [len(v) for k, v in sorted(vars(module).items()) if k.endswith("_hooks")]
        state.append((name, type(module), sorted(vars(module)), hooks))
    return state


def same(a: Any, b: Any) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("custom_text", [False, True])
def test_training_prunes_as_planned_and_gradients_flow(
    tiny_clip: Make, pairs: Pairs, custom_text: bool
) -> None:
    model = tiny_clip(custom_text=custom_text)
    handle = apply(model, "paper")
    with recorded_lengths(blocks(model)) as lengths:
        out = model(*pairs)
    assert lengths == PLANNED == list(handle.plan.tokens)
    (out["image_features"] @ out["text_features"].T).diag().sum().backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if n != "logit_scale")


def test_output_has_the_hosts_form(tiny_clip: Make, pairs: Pairs) -> None:
    base, model = tiny_clip(), tiny_clip()
    apply(model, "paper")
    for output_dict in (True, False):
        base.output_dict = model.output_dict = output_dict
        expected, out = base(*pairs), model(*pairs)
        assert type(out) is type(expected) and len(out) == len(expected)
        text = "text_features" if output_dict else 1
        image = "image_features" if output_dict else 0
        assert torch.equal(out[text], expected[text])
        assert not torch.equal(out[image], expected[image])


def test_siglip_bias_is_kept(pairs: Pairs) -> None:
    from conftest import TINY

    model = open_clip.CLIP(**TINY, output_dict=True, init_logit_bias=-10).train()
    apply(model, "paper")
    assert set(model(*pairs)) == {"image_features", "text_features", "logit_scale", "logit_bias"}
    model.output_dict = False
    assert len(model(*pairs)) == 4


@pytest.mark.parametrize("custom_text", [False, True])
def test_evaluation_and_single_inputs_equal_the_base_bitwise(
    tiny_clip: Make, pairs: Pairs, custom_text: bool
) -> None:
    image, text = pairs
    base, model = tiny_clip(custom_text=custom_text), tiny_clip(custom_text=custom_text)
    handle = apply(model, "paper")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.equal(
            model(image=image)["image_features"], base(image=image)["image_features"]
        )
        assert torch.equal(model(text=text)["text_features"], base(text=text)["text_features"])
    with handle.disabled():
        assert same(model(image, text), base(image, text))
    base.eval(), model.eval()
    assert same(model(image, text), base(image, text))
    assert torch.equal(model.encode_image(image), base.encode_image(image))
    with handle.guide(torch.randn(4, 32)):  # `eval_mode: full` holds even with a guide
        assert same(model(image, text), base(image, text))


def test_training_without_text_warns_once(tiny_clip: Make, pairs: Pairs) -> None:
    model = tiny_clip()
    apply(model, "paper")
    with pytest.warns(UserWarning, match="without a text guide, so it keeps all tokens"):
        model.encode_image(pairs[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.encode_image(pairs[0])
        model(*pairs)


def test_own_loop_with_guide_equals_forward(tiny_clip: Make, pairs: Pairs) -> None:
    image, text = pairs
    model = tiny_clip()
    handle = apply(model, "paper")
    assert handle.config == ElipConfig.preset("paper")
    with elip_plugin.find_handle(model).guide(
        7 * model.encode_text(text)
    ):  # the norm does not matter
        features = model.encode_image(image, normalize=True)
    torch.testing.assert_close(features, model(image, text)["image_features"])


def test_an_outer_guide_wins_over_the_caption(tiny_clip: Make, pairs: Pairs) -> None:
    image, text = pairs
    model = tiny_clip()
    handle = apply(model, "paper")
    with handle.guide(model.encode_text(text.flip(0))):
        out = model(image, text)
        guided = model.encode_image(image, normalize=True)
    assert torch.equal(out["image_features"], guided)
    assert not torch.equal(out["image_features"], model(image, text)["image_features"])


def test_text_is_encoded_once(tiny_clip: Make, pairs: Pairs) -> None:
    model = tiny_clip()
    apply(model, "paper")
    calls = []
    model.transformer.register_forward_hook(lambda *_: calls.append(1))
    model(*pairs)
    assert len(calls) == 1


def test_the_guide_carries_no_gradient_to_the_text(tiny_clip: Make, pairs: Pairs) -> None:
    model = tiny_clip()
    apply(model, "paper")
    model(*pairs)["image_features"].square().sum().backward()
    assert model.text_projection.grad is None and model.token_embedding.weight.grad is None


def test_captions_change_the_choice(tiny_clip: Make, pairs: Pairs) -> None:
    image, text = pairs
    model = tiny_clip()
    apply(model, {"preset": "fast", "text_weight": 1.0})
    one = model(image, text)["image_features"]
    two = model(image, text.flip(0))["image_features"]
    assert not torch.allclose(one, two)


def test_image_only_pruning_needs_no_text(tiny_clip: Make, pairs: Pairs) -> None:
    image, text = pairs
    model = tiny_clip()
    apply(model, {"preset": "fast", "text_weight": 0.0, "eval_mode": "image"})
    with recorded_lengths(blocks(model)) as lengths:
        alone = model.encode_image(image, normalize=True)
        both = model(image, text)["image_features"]
        evaluated = model.eval().encode_image(image, normalize=True)
    assert lengths == 3 * PLANNED
    assert torch.equal(alone, both) and torch.equal(alone, evaluated)


def test_eval_image_ignores_the_text(tiny_clip: Make, pairs: Pairs) -> None:
    image, text = pairs
    model = tiny_clip().eval()
    handle = apply(model, {"preset": "fast", "text_weight": 1.0, "eval_mode": "image"})
    alone = model.encode_image(image, normalize=True)
    with recorded_lengths(blocks(model)) as lengths:
        assert torch.equal(model(image, text)["image_features"], alone)
    assert lengths == PLANNED
    with handle.guide(model.encode_text(text)):
        assert torch.equal(model.encode_image(image, normalize=True), alone)


def test_a_plan_that_costs_more_than_it_saves_is_named(tiny_clip: Make) -> None:
    dear = {"stages": [{"block": 1, "lookahead": 11, "keep": 0.9}]}
    with pytest.warns(UserWarning, match=r"counted at 1\.\d\d of an unpruned training step"):
        apply(tiny_clip(), dear)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for preset in ("paper", "fast"):
            apply(tiny_clip(), preset)


def test_image_only_evaluation_warns_where_it_does_not_pay(tiny_clip: Make) -> None:
    with pytest.warns(UserWarning, match=r"counted at 1\.\d\d of an unpruned forward"):
        apply(tiny_clip(), {"preset": "paper", "eval_mode": "image"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        apply(tiny_clip(), {"preset": "fast", "eval_mode": "image"})


def test_eval_text_is_refused_for_contrastive_models_only(tiny_clip: Make, pairs: Pairs) -> None:
    model = tiny_clip()
    with pytest.raises(ConfigError, match="leaks the answer"):
        apply(model, {"preset": "paper", "eval_mode": "text"})
    tower = model.visual.eval()
    handle = apply(tower, {"eval_mode": "text", "preset": "fast"})
    with recorded_lengths(blocks(tower)) as lengths:
        with pytest.warns(UserWarning, match="without a text guide"):
            tower(pairs[0])
        with handle.guide(torch.randn(4, 32)):
            tower(pairs[0])
    assert lengths == [65] * 12 + PLANNED


def test_bare_tower(tiny_clip: Make, pairs: Pairs) -> None:
    tower = tiny_clip().visual
    handle = apply(tower, "paper")
    with handle.guide(torch.randn(4, 32)), recorded_lengths(blocks(tower)) as lengths:
        assert tower(pairs[0]).shape == (4, 32)
    assert lengths == PLANNED


def test_merge_can_be_off(tiny_clip: Make, pairs: Pairs) -> None:
    model = tiny_clip()
    apply(model, {"preset": "paper", "merge": False})
    with recorded_lengths(blocks(model)) as lengths:
        model(*pairs)
    assert lengths == [n - (n < 65) for n in PLANNED]


def whole_block_row(block: Any, y: Tensor, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """The class token's row, from what the host's own attention does inside the whole block."""
    if isinstance(block.attn, torch.nn.MultiheadAttention):
        z = block.ln_1(y)
        return block.attn(z, z, z, need_weights=True, average_attn_weights=True)[1][:, 0]
    seen: list[Tensor] = []
    attend = F.scaled_dot_product_attention

    def record(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        seen.append((q[:, :, :1] @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1))
        return attend(q, k, v, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", record)
    block(y)
    return seen[0][:, :, 0].mean(1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ls_init_value": 0.1},
    ],
    ids=str,
)
def test_the_reduced_block_scores_as_the_whole_block(
    tiny_clip: Make, pairs: Pairs, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    tower = tiny_clip(**options).visual.double()
    block = blocks(tower)[3]
    apply(tower, "paper")
    y = torch.randn(2, 9, 32, dtype=torch.float64)
    torch.testing.assert_close(block(y, run=look_ahead), block(y), rtol=0, atol=1e-12)
    expected = whole_block_row(block, y, monkeypatch)
    torch.testing.assert_close(block(y, run=attention_row), expected, rtol=0, atol=1e-12)
    handle = find_handle(tower)
    images = pairs[0].double()
    with handle.guide(torch.randn(4, 32)), recorded_lengths(blocks(tower)) as lengths:
        tower(images).sum().backward()
    assert lengths == PLANNED


def test_checkpointing_changes_nothing_and_selects_once(tiny_clip: Make, pairs: Pairs) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = tiny_clip()
        apply(model, "paper")
        model.set_grad_checkpointing(checkpointing)
        with recorded_choices() as made:
            model(*pairs)["image_features"].square().sum().backward()
        assert len(made) == 3  # one per stage, and none again in the backward pass
        gradients.append({n: p.grad for n, p in model.visual.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_accumulation_repeats_the_same_choice(tiny_clip: Make, pairs: Pairs) -> None:
    model = tiny_clip()
    apply(model, "paper")
    with torch.no_grad(), recorded_lengths(blocks(model)) as lengths:
        first = model(*pairs)["image_features"]
    assert lengths == PLANNED  # training is the flag, not the gradient mode
    torch.testing.assert_close(model(*pairs)["image_features"], first)


def test_every_weight_learns_under_autocast(tiny_clip: Make, pairs: Pairs) -> None:
    model = tiny_clip()
    apply(model, "paper")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(*pairs)
        loss = (out["image_features"] @ out["text_features"].T).diag().sum()
    loss.backward()
    silent = [n for n, p in model.visual.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(tiny_clip: Make, pairs: Pairs, dtype: torch.dtype) -> None:
    model = tiny_clip().to(dtype)
    apply(model, "paper")
    with recorded_lengths(blocks(model)) as lengths:
        assert model(pairs[0].to(dtype), pairs[1])["image_features"].dtype == dtype
    assert lengths == PLANNED


def test_patch_dropout_counts_what_is_left(tiny_clip: Make, pairs: Pairs) -> None:
    model = tiny_clip(patch_dropout=0.5)
    apply(model, "paper")
    with recorded_lengths(blocks(model)) as lengths:
        model(*pairs)
    kept = [int(0.9 * 32), int(0.65 * 32), int(0.4 * 32)]
    assert lengths == [33] * 2 + [kept[0] + 2] * 2 + [kept[1] + 2] * 6 + [kept[2] + 2] * 2


def test_counts_that_patch_dropout_makes_impossible_fail_before_a_token_leaves(
    tiny_clip: Make, pairs: Pairs
) -> None:
    model = tiny_clip(patch_dropout=0.9)
    apply(model, ElipConfig((Stage(2, 1, 40),)))
    with recorded_lengths(blocks(model)) as lengths, pytest.raises(PlanError, match="6 tokens"):
        model(*pairs)
    assert lengths == [7, 7]


def test_state_dicts_exchange_strictly(tiny_clip: Make, pairs: Pairs) -> None:
    base, model = tiny_clip(seed=0), tiny_clip(seed=1)
    apply(model, "paper")
    assert list(model.state_dict()) == list(base.state_dict())
    model.load_state_dict(base.state_dict(), strict=True)
    tiny_clip(seed=2).load_state_dict(model.state_dict(), strict=True)
    assert same(model.eval()(*pairs), base.eval()(*pairs))


def test_an_attention_that_was_exchanged_is_refused(tiny_clip: Make, pairs: Pairs) -> None:
    model = tiny_clip()
    apply(model, "paper")
    for block in model.visual.transformer.resblocks:
        if hasattr(block, "elip"):
            width, heads = block.attn.out_proj.in_features, block.attn.num_heads
            block.attn = torch.nn.MultiheadAttention(width, heads, batch_first=True)
    with pytest.raises(UnsupportedModelError, match="'attn' of a pruned block is a MultiheadAtt"):
        model(*pairs)


def test_remove_leaves_nothing_behind(tiny_clip: Make, pairs: Pairs) -> None:
    base, model = tiny_clip(), tiny_clip()
    before = snapshot(model)
    handle = apply(model, "paper")
    assert snapshot(model) != before
    model(*pairs)
    handle.remove()
    handle.remove()
    assert snapshot(model) == before
    assert same(model(*pairs), base(*pairs))
    apply(model, "paper").remove()
    assert snapshot(model) == before


def test_copies_and_pickles_are_whole_and_independent(tiny_clip: Make, pairs: Pairs) -> None:
    model = tiny_clip()
    apply(model, "paper")
    expected = model(*pairs)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert same(copied(*pairs), expected)
        with find_handle(copied).disabled(), recorded_lengths(blocks(model)) as lengths:
            model(*pairs)
        assert lengths == PLANNED
        find_handle(copied).remove()
        assert same(model(*pairs), expected)


def test_a_copy_made_in_mid_forward_has_no_guide(tiny_clip: Make) -> None:
    model = tiny_clip()
    handle = apply(model, "paper")
    with handle.guide(torch.randn(4, 32)):
        copied = copy.deepcopy(model)
    assert find(find_pruner(copied), Forward) is None


def test_whole_model_saved_by_torch(tiny_clip: Make, pairs: Pairs) -> None:
    model = tiny_clip()
    apply(model, "paper")
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    assert same(torch.load(buffer, weights_only=False)(*pairs), model(*pairs))


def test_two_models_do_not_mix(tiny_clip: Make, pairs: Pairs) -> None:
    one, two = tiny_clip(seed=0), tiny_clip(seed=1)
    first, _ = apply(one, "paper"), apply(two, "fast")
    alone = two(*pairs)
    with first.guide(torch.randn(4, 32)), first.disabled():
        assert same(two(*pairs), alone)


def test_an_exception_in_mid_forward_leaves_nothing(
    tiny_clip: Make, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_clip()
    handle = apply(model, "paper")
    expected = model(*pairs)

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(blocks(model)[6], "forward", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            model(*pairs)
        with pytest.raises(RuntimeError, match="out of memory"), handle.disabled():
            model(*pairs)
    assert find(find_pruner(model), Forward) is None
    assert same(model(*pairs), expected)


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [(4, 31, r"\(4, 31\).*\(batch, 32\)"), (3, 32, r"\(3, 32\).*\(4, 32\)")],
)
def test_a_guide_of_the_wrong_shape(
    tiny_clip: Make, pairs: Pairs, rows: int, columns: int, message: str
) -> None:
    model = tiny_clip()
    handle = apply(model, "paper")
    with pytest.raises(GuideError, match=message), handle.guide(torch.randn(rows, columns)):
        model.encode_image(pairs[0])
    assert find(find_pruner(model), Forward) is None


def test_a_bare_towers_guide_of_the_wrong_width(tiny_clip: Make, pairs: Pairs) -> None:
    tower = tiny_clip().visual
    handle = apply(tower, "paper")
    with pytest.raises(GuideError, match=r"\(4, 33\).*\(4, 32\)"), handle.guide(torch.randn(4, 33)):
        tower(pairs[0])


@pytest.mark.parametrize(
    ("vision", "message"),
    [
        ({"pool_type": "none"}, "pool_type 'none'"),
        ({"attentional_pool": "parallel"}, "attentional pooling 'parallel'"),
        ({"layers": (1, 1, 1, 1), "width": 16}, "ModifiedResNet"),
    ],
)
def test_unsupported_towers_are_refused_untouched(
    tiny_clip: Make, vision: dict[str, Any], message: str
) -> None:
    model = tiny_clip(**vision)
    before = snapshot(model)
    with pytest.raises(UnsupportedModelError, match=message):
        apply(model, "paper")
    assert snapshot(model) == before


@pytest.mark.parametrize("option", ["qk_norm", "scale_heads", "scale_attn", "scaled_cosine_attn"])
def test_options_of_blocks_are_refused(tiny_clip: Make, option: str) -> None:
    try:
        model = tiny_clip(**{option: True})
    except TypeError:
        pytest.skip("this open_clip has no such block option")
    with pytest.raises(UnsupportedModelError, match=r"has options of its blocks \(qk_norm"):
        apply(model)


def test_a_plan_that_does_not_fit_leaves_the_model_untouched(tiny_clip: Make) -> None:
    model = tiny_clip(layers=4)
    before = snapshot(model)
    with pytest.raises(PlanError, match=r"2 faults(.|\n)*at most 1 of 4(.|\n)*blocks 0 to 3"):
        apply(model, ElipConfig((Stage(3, 2, 0.5), Stage(9, 1, 0.4))))
    assert snapshot(model) == before


@pytest.mark.parametrize("stages", [(), (Stage(2, 1, 1.0),)])
def test_a_config_without_effect_is_refused(tiny_clip: Make, stages: tuple[Stage, ...]) -> None:
    with pytest.raises(PlanError, match="prunes nothing"):
        apply(tiny_clip(), ElipConfig(stages))


def test_applying_twice_and_foreign_modules_are_refused(tiny_clip: Make) -> None:
    model = tiny_clip()
    apply(model, "paper")
    with pytest.raises(UnsupportedModelError, match=r"already.*remove\(\)"):
        apply(model, "paper")
    with pytest.raises(UnsupportedModelError, match="none of the hosts"):
        apply(torch.nn.Linear(2, 2))
    with pytest.raises(UnsupportedModelError, match="not pruned by ELIP"):
        find_handle(tiny_clip())
    with pytest.raises(UnsupportedModelError, match="vision tower Transformer cannot be pruned"):
        apply(open_clip.transformer.Transformer(32, 2, 4))


def test_torchscript_is_refused_clearly(tiny_clip: Make) -> None:
    model = tiny_clip()
    handle = apply(model, "paper")
    with pytest.raises(UnsupportedModelError, match="train without --torchscript"):
        torch.jit.script(model)
    handle.remove()
    if not hasattr(open_clip, "create_task"):  # OpenCLIP 4 cannot be scripted at all
        torch.jit.script(model)


def test_compiles_to_one_graph_with_the_same_result(tiny_clip: Make, pairs: Pairs) -> None:
    model = tiny_clip(layers=6)
    apply(model, "paper")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*pairs), model(*pairs))
    compiled(*pairs)["image_features"].sum().backward()
    assert find(find_pruner(model), Forward) is None
