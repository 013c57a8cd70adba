"""Laws of LAVIS' pruned models: each arch trains, evaluates and can be undone."""

from __future__ import annotations

import copy
import pickle
from typing import Any
from unittest import mock

import pytest
import torch

pytest.importorskip("lavis")

from lavis_family import (
    ARCHS,
    CAPTIONS,
    CLIP,
    EXTRACTORS,
    FULL,
    OTHERS,
    PLANNED,
    bert_sizes,
    evaluate,
    is_clip,
    pruned,
    run,
    samples,
    step,
    stock,
)
from lavis_recorders import (
    assert_equal,
    assert_nothing_left,
    choices,
    seen,
    shape_of,
    tensors,
    text_calls,
    tokenizations,
    tower,
)

from elip_plugin import apply, find_handle
from elip_plugin.core.score import score
from elip_plugin.errors import ConfigError, UnsupportedModelError
from elip_plugin.hosts.lavis.text import CachingTokenizer, TextPass
from elip_plugin.patching.calls import thread
from elip_plugin.reducers import find_reducer

every_arch = pytest.mark.parametrize("arch", ARCHS)

TEXT_AT_TEST = [arch for arch, cls in ARCHS.items() if cls.text_at_test]
OWN_TEXT_PASS = [arch for arch, cls in ARCHS.items() if cls.own_text_pass]
LAYERED = ["albef_vqa", "albef_nlvr", "albef_classification"]
"""ALBEF models whose fused pass begins with the text pass."""

BY_TEXT = [arch for arch in ARCHS if arch != "blip_caption"]
"""Archs that a text guides."""

EACH_KIND = [
    "albef_pretrain",
    "albef_vqa",
    "albef_feature_extractor",
    "blip_pretrain",
    "blip_nlvr",
    "blip_caption",
    "clip",
]
"""One arch for each way in which images and text enter, and for each text encoder."""


def test_the_helpers_know_every_arch() -> None:
    """`samples`, `run` and `evaluate` have something for each arch, and none is left out."""
    from lavis_family import MOMENTUM

    families = {"albef": 6, "blip": 8, "clip": 2}
    assert {f: sum(a.split("_")[0] == f for a in ARCHS) for f in families} == families
    with_momentum = [a for a in ARCHS if not is_clip(a) and hasattr(pruned(a), "visual_encoder_m")]
    assert sorted(MOMENTUM) == sorted(with_momentum)


@every_arch
def test_trains_and_evaluates(arch: str) -> None:
    """By name, and by `apply` to LAVIS' own model, which is the same."""
    model, base = pruned(arch), stock(arch)
    handle = apply(base, find_handle(model).config)
    assert shape_of(base) == shape_of(model)
    with seen(model) as lengths:
        output, gradients = step(arch, model)
    assert lengths == PLANNED == list(find_handle(model).plan.tokens)
    assert all(v.isfinite().all() for k, v in output.items() if v.is_floating_point()), arch
    assert all(g.isfinite().all() for g in gradients.values())
    assert_nothing_left(model)
    for ours, theirs in zip((output, gradients), step(arch, base)):
        assert_equal(ours, theirs)
    handle.remove()
    wanted = step(arch, base)[1]
    assert wanted or arch in EXTRACTORS
    assert set(gradients) == set(wanted)
    with seen(model.eval()) as lengths:
        made = evaluate(arch, model)
    assert made and lengths == FULL * (len(lengths) // 12)
    for method in {"rank", "generate", "beams", "nucleus"} & set(made):
        expected = 8 if method == "nucleus" else 4
        assert len(made[method]) == expected
        assert all(isinstance(text, str) for text in made[method])
    if "scores" in made:
        assert [scores.shape for scores in made["scores"]] == [(4, 4), (4, 4)]


@every_arch
def test_equals_the_base_where_it_does_not_prune_and_when_removed(arch: str) -> None:
    """BERT's dropout is on: the generator's state must stay in step as well."""
    bert = {} if is_clip(arch) else {"bert": bert_sizes(arch)}
    model, base = pruned(arch, **bert), stock(arch, **bert)
    assert_equal(dict(model.state_dict()), dict(base.state_dict()))
    untouched = shape_of(base)
    handle = find_handle(model)
    with handle.disabled():
        ours, theirs = step(arch, model), step(arch, base)
    for got, wanted in zip(ours, theirs):
        assert_equal(got, wanted)
    run(arch, model)  # what a pruned forward switches on must not stay on
    model.load_state_dict(base.state_dict())
    full, expected = evaluate(arch, model.eval()), evaluate(arch, base.eval())
    # Pre-training models of LAVIS have nothing to evaluate them by but their loss.
    assert set(full) - set(expected) == ({"scores"} if arch.endswith("_pretrain") else set())
    for name in expected:
        assert_equal(tensors(full[name]), tensors(expected[name]))
    if arch not in EXTRACTORS:
        assert_equal(tensors(run(arch, model)), tensors(run(arch, base)))
    for target in (model, base):
        target.zero_grad()
    handle.remove()
    handle.remove()
    assert shape_of(model) == untouched
    assert_equal(step(arch, model.train())[0], step(arch, base.train())[0])
    base.load_state_dict(model.state_dict())


@pytest.mark.parametrize("reducer", ["evit", "tome", "random"])
@pytest.mark.parametrize("arch", ["albef_pretrain", "blip_caption", "clip"])
def test_the_other_reducers_prune_these_towers_too(arch: str, reducer: str) -> None:
    model, base = pruned(arch, elip={"reducer": reducer}), stock(arch)
    handle = find_handle(model)
    with seen(model) as lengths:
        output, gradients = step(arch, model)
    assert lengths == list(handle.plan.tokens) and lengths[-1] < 17
    assert output["/loss"].isfinite() and all(g.isfinite().all() for g in gradients.values())
    model.load_state_dict(base.state_dict())
    full, expected = evaluate(arch, model.eval()), evaluate(arch, base.eval())
    assert_equal(
        *(
            {k: v for k, v in tensors(made).items() if "scores" not in k}
            for made in (full, expected)
        )
    )
    handle.remove()
    assert shape_of(model) == shape_of(base)
    ours, theirs = step(arch, model.train()), step(arch, base.train())
    assert set(gradients) == set(theirs[1])
    for got, wanted in zip(ours, theirs):
        assert_equal(got, wanted)


@pytest.mark.parametrize("arch", OWN_TEXT_PASS)
def test_text_is_tokenized_and_encoded_once_which_changes_nothing(arch: str) -> None:
    model, other, base = pruned(arch), pruned(arch), stock(arch)
    with text_calls(base) as plain:
        run(arch, base)
    with text_calls(model) as calls, tokenizations(model) as asked:
        given = samples()
        shared = step(arch, model, given)
    assert sum(text is given["text_input"] for text in asked) == 1
    if arch in LAYERED:
        # NLVR2's momentum branch runs the other branch's text encoder, in LAVIS too.
        fusions = 2 if arch == "albef_nlvr" else 1
        assert calls == ["text"] + ["fusion"] * fusions
        assert plain == ["multimodal"] * fusions
    else:
        assert calls == plain and calls.count("text") == 1
    forgetful = property(lambda cache: None, lambda cache, ids: None)
    with mock.patch.object(TextPass, "ids", forgetful), text_calls(other) as calls:
        alone = step(arch, other)
    assert len(calls) > 1
    for ours, theirs in zip(shared, alone):
        assert list(ours) == list(theirs)
        torch.testing.assert_close(dict(ours), dict(theirs), rtol=1e-4, atol=1e-5)


def test_tokens_stay_the_same_tensor_when_moved_to_the_device() -> None:
    """On an accelerator `.to` copies, and a copy would not be known by the cache."""
    once = CachingTokenizer(pruned("clip").tokenizer, CAPTIONS, torch.device("meta"))
    assert once(CAPTIONS).to("meta") is once(CAPTIONS).to("meta")
    assert once(OTHERS).device.type == "cpu"


@pytest.mark.parametrize("arch", BY_TEXT)
def test_the_caption_chooses_in_training(arch: str) -> None:
    model = pruned(arch, elip="paper")
    kept = []
    for captions in (CAPTIONS, CAPTIONS, OTHERS):
        with choices() as chosen:
            run(arch, model, samples(captions))
        kept.append(chosen)
    assert len(kept[0]) == 3
    assert all(torch.equal(a, b) for a, b in zip(kept[0], kept[1]))
    assert any(not torch.equal(a, b) for a, b in zip(kept[0], kept[2]))


def test_a_text_guides_both_images_of_nlvr() -> None:
    for arch in ("albef_nlvr", "blip_nlvr"):
        model = pruned(arch)
        given = samples()
        given["image1"] = given["image0"]
        with choices() as kept:
            run(arch, model, given)
        assert kept and all(torch.equal(*chosen.chunk(2)) for chosen in kept)


@pytest.mark.parametrize("arch", TEXT_AT_TEST)
def test_the_text_chooses_in_evaluation_where_it_is_an_input(arch: str) -> None:
    model = pruned(arch, elip={"preset": "paper", "eval_mode": "text"}).eval()
    call = {"albef_vqa": "rank", "blip_vqa": "rank"}.get(arch)

    def forward(captions: list[str]) -> Any:
        given = samples(captions)
        with torch.no_grad(), seen(model) as lengths, choices() as chosen:
            if call:
                model.predict_answers(given, answer_list=["yes", "no"])
            elif hasattr(model, "predict"):
                model.predict(given)
            else:
                run(arch, model, given)
        assert lengths == PLANNED
        return chosen

    ours, same, others = forward(CAPTIONS), forward(CAPTIONS), forward(OTHERS)
    assert all(torch.equal(a, b) for a, b in zip(ours, same))
    assert any(not torch.equal(a, b) for a, b in zip(ours, others))
    assert_nothing_left(model)


@pytest.mark.parametrize("arch", sorted(set(ARCHS) - set(TEXT_AT_TEST)))
def test_evaluation_by_text_is_refused_where_it_would_leak(arch: str) -> None:
    assert TEXT_AT_TEST and arch.endswith(
        ("_pretrain", "_retrieval", "_caption", "clip", "clip_feature_extractor")
    )
    base = stock(arch)
    before = shape_of(base)
    with pytest.raises(ConfigError, match="leak"):
        apply(base, {"eval_mode": "text", "text_weight": 0.0})
    assert shape_of(base) == before
    if arch in EACH_KIND:
        with pytest.raises(ConfigError, match="leak"):
            pruned(arch, elip={"eval_mode": "text"})


def test_contrastive_matching_does_not_know_the_text() -> None:
    arch = "blip_image_text_matching"
    model, base = pruned(arch, elip={"eval_mode": "text"}).eval(), stock(arch).eval()
    with seen(model) as lengths, pytest.warns(UserWarning, match="without a text guide"):
        scores = model(samples(), match_head="itc")
    assert lengths == FULL
    assert torch.equal(scores, base(samples(), match_head="itc"))
    with seen(model.train()) as lengths:
        model(samples(), match_head="itc")
    assert lengths == PLANNED


@pytest.mark.parametrize("arch", EXTRACTORS)
def test_features_of_an_image_alone_do_not_know_the_text(arch: str) -> None:
    model, base = pruned(arch, elip={"eval_mode": "text"}).eval(), stock(arch).eval()
    with seen(model) as lengths, pytest.warns(UserWarning, match="without a text guide"):
        features = model.extract_features(samples(), mode="image")
    assert lengths == FULL
    assert torch.equal(
        features.image_embeds, base.extract_features(samples(), mode="image").image_embeds
    )


@pytest.mark.parametrize("arch", EXTRACTORS)
def test_features_carry_no_gradient(arch: str) -> None:
    output = run(arch, pruned(arch))
    made = [output.image_embeds, output.text_embeds, output.multimodal_embeds]
    assert not any(features.requires_grad for features in made if features is not None)


@every_arch
def test_evaluation_by_image_prunes_and_needs_no_text(arch: str) -> None:
    model = pruned(arch, elip={"preset": "fast", "eval_mode": "image"}).eval()
    with seen(model) as lengths, choices() as ours:
        evaluate(arch, model)
    assert lengths == PLANNED * (len(lengths) // 12) and lengths
    with choices() as others:
        evaluate(arch, model, samples(OTHERS))
    assert ours and all(torch.equal(a, b) for a, b in zip(ours, others, strict=True))


def test_scores_of_a_pretraining_model_are_cosines_of_its_own_embeddings() -> None:
    for arch in ("albef_pretrain", "blip_pretrain"):
        model = pruned(arch).eval()
        by_image, by_text = evaluate(arch, model)["scores"]
        output = run(arch, stock(arch).eval())
        # The image feature against the momentum encoder's text feature, before any step.
        wanted = output.sims.sim_i2t[:, :4] * model.temp
        torch.testing.assert_close(torch.as_tensor(by_image), wanted.detach())
        assert (by_text == by_image.T).all()


WIDER = {"width": 48, "depth": 12, "heads": 3, "patch_size": 16}


@pytest.mark.parametrize("arch", ["albef_pretrain", "blip_pretrain", "albef_retrieval"])
def test_other_widths_are_bridged_by_the_projections(arch: str) -> None:
    model = pruned(arch, vit=WIDER)
    guides = []

    def recorded(x: Any, stage: Any, context: Any) -> Any:
        guides.append(context.guide)
        return score(x, stage, context)

    scored = mock.patch.object(type(find_reducer("elip")), "scores", staticmethod(recorded))
    with scored, seen(model) as lengths:
        output = run(arch, model)
    assert lengths == PLANNED
    # No gradient was taken and no step made: the heads are as they were.
    token = output.intermediate_output.text_embeds[:, 0]
    carried = torch.nn.functional.normalize(model.text_proj(token), dim=-1)
    torch.testing.assert_close(guides[0], (carried @ model.vision_proj.weight).detach())


NO_PROJECTION = [arch for arch in BY_TEXT if arch.endswith(("_vqa", "_nlvr", "_classification"))]


@pytest.mark.parametrize("arch", NO_PROJECTION)
def test_other_widths_without_a_projection_are_refused(arch: str) -> None:
    # LAVIS gives VQA's answer decoder the tower's width, so there two widths never work.
    way_out = "equal$" if arch.endswith("_vqa") else "equal, or set text_weight 0"
    with pytest.raises(UnsupportedModelError, match=rf"width 32.*width 48.*{way_out}"):
        pruned(arch, vit=WIDER)
    if arch.endswith("_vqa"):
        return
    model = pruned(arch, vit=WIDER, elip={"text_weight": 0.0})
    with seen(model) as lengths:
        step(arch, model)
    assert lengths == PLANNED


def test_captioning_has_no_text_to_guide_it() -> None:
    for config in (None, "fast", {"preset": "fast"}):
        assert find_handle(pruned("blip_caption", elip=config)).config.text_weight == 0
    with pytest.raises(ConfigError, match="set text_weight 0"):
        pruned("blip_caption", elip={"text_weight": 0.2})
    with pytest.raises(ConfigError, match="set text_weight 0"):
        apply(stock("blip_caption"), "paper")
    model = pruned("blip_caption")
    with choices() as ours:
        run("blip_caption", model)
    with choices() as others:
        run("blip_caption", model, samples(OTHERS))
    assert len(ours) == 3 and all(torch.equal(a, b) for a, b in zip(ours, others))


@pytest.mark.parametrize("arch", sorted({*EACH_KIND} & {*BY_TEXT}))
def test_nothing_is_left_after_an_exception(arch: str) -> None:
    model = pruned(arch)
    before = shape_of(model)
    tokenizer = model.tokenizer
    # After the first stage, so guide and cache are there when it breaks.
    vision = tower(model)
    blocks = vision.blocks if hasattr(vision, "blocks") else vision.transformer.resblocks

    def broken(*args: Any, **options: Any) -> Any:
        raise ZeroDivisionError

    part = blocks[11].mlp
    with mock.patch.object(type(part), "forward", broken), pytest.raises(ZeroDivisionError):
        run(arch, model)
    hook = blocks[11].mlp.register_forward_pre_hook(broken)
    with text_calls(model) as calls, pytest.raises(ZeroDivisionError):
        run(arch, model)
    hook.remove()
    assert calls  # the guide had been made
    assert_nothing_left(model)
    assert model.tokenizer is tokenizer
    assert shape_of(model) == before
    step(arch, model)


@pytest.mark.parametrize("arch", EACH_KIND)
def test_copies_work_and_are_independent(arch: str) -> None:
    model = pruned(arch)
    run(arch, model)
    copies = [copy.deepcopy(model), copy.deepcopy(model)]
    if not is_clip(arch):  # LAVIS' CLIP holds lambdas and cannot be pickled
        copies[1] = pickle.loads(pickle.dumps(model))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    made = [step(arch, copied)[0] for copied in copies]
    assert_equal(made[0], made[1])
    assert_equal(state, dict(model.state_dict()))  # nor its queue and momentum encoder
    with torch.no_grad():
        for copied in copies:
            for parameter in copied.parameters():
                parameter.zero_()
            find_handle(copied).remove()
    with seen(model) as lengths:
        assert_equal(step(arch, model)[0], made[0])
    assert lengths == PLANNED


def test_an_own_guide_wins_over_the_caption() -> None:
    model = pruned("blip_vqa")
    handle = find_handle(model)
    features = torch.randn(4, 32, generator=torch.Generator().manual_seed(3))
    kept = []
    for captions in (CAPTIONS, OTHERS):
        with handle.guide(features), choices() as chosen, text_calls(model) as calls:
            run("blip_vqa", model, samples(captions))
        assert "text" not in calls
        kept.append(chosen)
    assert all(torch.equal(a, b) for a, b in zip(*kept))


def test_a_copy_made_within_a_forward_starts_clean() -> None:
    model, copies = pruned("albef_retrieval"), []
    last = model.visual_encoder.blocks[11].mlp
    hook = last.register_forward_pre_hook(
        lambda *_: copies.extend(map(copy.deepcopy, (model.text_encoder, model.visual_encoder)))
    )
    run("albef_retrieval", model)
    hook.remove()
    assert thread.innermost is None
    for copied, module in zip(copies, (model.text_encoder, model.visual_encoder), strict=True):
        assert [*vars(copied)] == [*vars(module)]
        assert shape_of(copied) == shape_of(module)


@pytest.mark.parametrize("arch", ["albef_pretrain", "blip_pretrain", "albef_nlvr", "clip"])
def test_trains_under_autocast(arch: str) -> None:
    model = pruned(arch)
    with seen(model) as lengths, torch.autocast("cpu", dtype=torch.bfloat16):
        output, gradients = step(arch, model)
    assert lengths == PLANNED and output["/loss"].isfinite()
    assert all(g.isfinite().all() for g in gradients.values())


def test_other_towers_of_clip_are_refused() -> None:
    resnet = {**CLIP, "vision_cfg": {"image_size": 64, "width": 32, "layers": [1, 1, 1, 1]}}
    with pytest.raises(UnsupportedModelError, match="ModifiedResNet"):
        pruned("clip", clip=resnet)
