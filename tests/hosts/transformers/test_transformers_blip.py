"""BLIP's models in transformers: what guides them, and what reads the tokens that are left."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from conftest import recorded_lengths
from torch import Tensor

import elip_plugin
from elip_plugin.core.context import StageContext
from elip_plugin.core.score import text_similarity
from elip_plugin.errors import ConfigError, GuideError, UnsupportedModelError
from elip_plugin.reducers import FOR_QUESTIONS, find_reducer

hf = pytest.importorskip("transformers", minversion="4.57")

from hosts.transformers.tiny import (  # noqa: E402
    ALL,
    BLIP_TEXT,
    QUERIES,
    READERS,
    UNGUIDED,
    VISION,
    inputs,
    layers_of,
    loss_of,
    make,
    tensors,
)

FAST = {"preset": "fast", "text_weight": 0.9}
SIMILARITY = {"preset": "fast", "reducer": "similarity"}
GENERATING = ["blip_vqa", "blip_caption", "blip2", "instructblip", "instructblip_video"]
BEAMS = {"num_beams": 3, "max_new_tokens": 4}


def text_of(family: str) -> str:
    """The argument that is the text."""
    return "qformer_input_ids" if family.startswith("instruct") else "input_ids"


def other_text(family: str) -> dict[str, Any]:
    """The same images with another text."""
    batch = inputs(family=family)
    return {**batch, text_of(family): batch[text_of(family)].flip(0)}


def given_to_generate(family: str) -> dict[str, Any]:
    batch = inputs(family=family)
    del batch["labels"]
    return {**batch, **BEAMS}


def kept(handle: Any, run: Callable[[], Any]) -> list[Tensor]:
    """The tokens that the stages of a forward keep."""
    with handle.trace() as trace, torch.no_grad():
        run()
    return [stage.kept for stage in trace.stages]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def text_side(model: Any) -> Any:
    return model.qformer if hasattr(model, "qformer") else model.text_encoder


def crossed(model: Any) -> list[tuple[Any, Any]]:
    """The cross-attentions that read the tower, and what they are called by in a layer."""
    layers = [x for x in text_side(model).encoder.layer if hasattr(x, "crossattention")]
    inner = "attention" if hasattr(model, "qformer") else "self"
    return [(layer.crossattention, getattr(layer.crossattention, inner)) for layer in layers]


@contextmanager
def recorded_reading(attentions: list[Any]) -> Iterator[list[tuple[int, Any]]]:
    """The number of tokens that cross-attentions read, and their mask."""
    read: list[tuple[int, Any]] = []

    def record(module: Any, args: Any, options: Any) -> None:
        given = {**dict(zip(("hidden_states", "attention_mask"), args)), **options}
        # A Q-Former's has both masks, of which its own is the second.
        mask = given.get("encoder_attention_mask", given.get("attention_mask"))
        read.append((given["encoder_hidden_states"].shape[1], mask))

    hooks = [a.register_forward_pre_hook(record, with_kwargs=True) for a in attentions]
    yield read
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("config", [FAST, SIMILARITY], ids=["elip", "similarity"])
@pytest.mark.parametrize("family", READERS)
def test_the_text_chooses(family: str, config: dict[str, Any]) -> None:
    model = make(family).train()
    handle = elip_plugin.apply(model, config)
    first, again, second = (
        kept(handle, lambda given=given: model(**given))
        for given in (inputs(family=family), inputs(family=family), other_text(family))
    )
    assert same(first, again)
    assert any(not torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("family", READERS)
def test_padding_of_the_text_changes_no_choice(family: str) -> None:
    model, batch = make(family).train(), inputs(family=family)
    name = text_of(family)
    other = {**batch, name: batch[name].clone()}
    other[name][0, 9:] = 7  # where the mask is 0
    for config in (FAST, SIMILARITY):
        handle = elip_plugin.apply(model, config)
        assert same(*(kept(handle, lambda g=given: model(**g)) for given in (batch, other)))
        handle.remove()


@pytest.mark.parametrize("family", READERS)
def test_a_guide_by_hand_is_what_the_model_guides_by(family: str) -> None:
    """Of the reducer `elip`: the class token of the text alone, which is encoded once more."""
    model, batch = make(family).train(), inputs(family=family)
    handle, tokens = elip_plugin.apply(model, FAST), []
    hook = text_side(model).register_forward_hook(
        lambda module, args, out: tokens.append(out.last_hidden_state[:, 0])
    )
    own = kept(handle, lambda: model(**batch))
    hook.remove()
    assert len(tokens) == 2
    features = tokens[0]
    with handle.guide(features):
        assert same(own, kept(handle, lambda: model(**other_text(family))))
    if family != "instructblip_video":
        with handle.guide(features):
            images = batch["pixel_values"]
            assert same(own, kept(handle, lambda: model.vision_model(pixel_values=images)))
    with pytest.raises(GuideError, match="text features have shape"), handle.guide(features[:, :5]):
        pass


@pytest.mark.parametrize("family", [name for name in READERS if name != "instructblip_video"])
@pytest.mark.parametrize("count", [1, 2, 9])
def test_similarity_is_the_attention_of_the_first_cross_attentions(family: str, count: int) -> None:
    model, batch = make(family).eval(), inputs(family=family)
    reducer = {"name": "similarity", "cross_attentions": count}
    handle = elip_plugin.apply(model, {"preset": "fast", "reducer": reducer})
    attentions = [inner for _, inner in crossed(model)]
    seen: dict[tuple[int, str], Tensor] = {}

    def keep(i: int, name: str) -> Any:
        def hook(module: Any, args: Any, out: Tensor) -> None:
            seen.setdefault((i, name), out.unflatten(-1, (attentions[i].num_attention_heads, -1)))

        return hook

    for i, attention in enumerate(attentions):
        for name in ("query", "key"):
            getattr(attention, name).register_forward_hook(keep(i, name))
    with torch.no_grad(), handle.disabled():
        model(**batch)
        tokens = model.vision_model(pixel_values=batch["pixel_values"]).last_hidden_state
    words = (
        batch["attention_mask"].double() if family.startswith("blip_") else torch.ones(3, QUERIES)
    )
    maps = []
    for i, attention in enumerate(attentions[:count]):
        logits = torch.einsum("bshd,bthd->bsht", seen[i, "query"], seen[i, "key"])
        rows = (logits / attention.attention_head_size**0.5)[..., 1:].softmax(-1).mean(2)
        maps.append((rows * words[..., None]).sum(1) / words.sum(1, keepdim=True))
    reader = model.elip_reader(batch)
    first, further = reader.queries(count, gradient=False)
    assert not first.requires_grad and (further is None) == (count == 1)
    context = StageContext(1, first, 1.0, further=further)
    ours = text_similarity(tokens, torch.nn.Identity(), context)
    expected = (sum(maps) / len(maps)).to(ours.dtype)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)
    assert ours.std(1).min() > 1e-4


@pytest.mark.parametrize("family", [*READERS, *UNGUIDED])
def test_what_reads_the_tower_gets_the_kept_tokens_and_no_padding(family: str) -> None:
    model, batch = make(family).train(), inputs(family=family)
    handle = elip_plugin.apply(model, {**FAST, "text_weight": 0.0})
    if family == "blip_caption":
        layers = model.text_decoder.bert.encoder.layer
        outer = [layer.crossattention for layer in layers]
    else:
        outer = [attention for attention, _ in crossed(model)]
    with recorded_reading(outer) as read:
        model(**batch)
    assert read and handle.plan.tokens[-1] < 65
    for length, mask in read:
        assert length == handle.plan.tokens[-1]
        assert mask is None or (mask.shape[-1] == length and not mask.any())


@pytest.mark.parametrize("family", GENERATING)
def test_generating_with_beams_reads_the_pruned_tower(family: str) -> None:
    model, given = make(family).eval(), given_to_generate(family)
    expected = model.generate(**given)
    mode = "image" if family in UNGUIDED else "text"
    handle = elip_plugin.apply(
        model, {**FAST, "text_weight": 0.9 * (mode == "text"), "eval_mode": mode}
    )
    with handle.disabled():
        assert torch.equal(model.generate(**given), expected)
    with recorded_lengths(layers_of(model)) as lengths:
        answer = model.generate(**given)
    assert lengths == list(handle.plan.tokens)  # once, not for each beam or word
    batch = {**inputs(family=family)}
    chosen = kept(handle, lambda: model(**batch))
    assert same(chosen, kept(handle, lambda: model.generate(**given)))
    if family == "blip_vqa":
        mask, seen = batch["attention_mask"], []
        hook = model.text_encoder.register_forward_hook(lambda m, a, out: seen.append(out))
        with torch.no_grad():
            model(**batch)
        hook.remove()
        states = seen[-1].last_hidden_state
        by_hand = model.text_decoder.generate(
            input_ids=torch.full((len(mask), 1), BLIP_TEXT["bos_token_id"]),
            eos_token_id=BLIP_TEXT["sep_token_id"],
            pad_token_id=BLIP_TEXT["pad_token_id"],
            encoder_hidden_states=states,
            encoder_attention_mask=torch.ones_like(mask),
            **BEAMS,
        )
        assert torch.equal(by_hand, answer)
        unmasked = {k: v for k, v in given.items() if k != "attention_mask"}
        as_list = {**unmasked, "input_ids": unmasked["input_ids"].tolist()}
        assert torch.equal(model.generate(**as_list), model.generate(**unmasked))


@pytest.mark.parametrize("family", [name for name in READERS if name != "instructblip_model"])
def test_the_loss_on_the_choice_teaches_what_reads_and_changes_no_forward(family: str) -> None:
    outputs, gradients = [], []
    for weight in (0.0, 2.0):
        model = make(family).train()
        reducer = {"name": "similarity", "choice_loss": weight}
        elip_plugin.apply(model, {"preset": "fast", "reducer": reducer})
        out = model(**inputs(family=family))
        outputs.append([tensor.detach() for tensor in tensors(out)])
        loss_of(out).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert same(*outputs)
    assert gradients[0].keys() == gradients[1].keys()
    changed = {n for n, g in gradients[0].items() if not torch.allclose(g, gradients[1][n])}
    ends = ("query.weight", "key.weight")
    for end in ends:
        assert any("encoder.layer.0.crossattention" in n and n.endswith(end) for n in changed)
    assert "vision_model.post_layernorm.weight" in changed
    of_tower = [n for n in changed if n.startswith("vision_model.") and "post_layernorm" not in n]
    assert not of_tower


@pytest.mark.parametrize("family", ["blip_vqa", "instructblip"])
def test_in_evaluation_the_choice_teaches_nothing(family: str) -> None:
    found = []
    for weight in (0.0, 2.0):
        model = make(family).eval()
        reducer = {"name": "similarity", "choice_loss": weight}
        config = {"preset": "fast", "reducer": reducer, "eval_mode": "text"}
        handle = elip_plugin.apply(model, config)
        with handle.trace() as trace:
            loss = model(**inputs(family=family)).loss
        assert trace.stages  # it is pruned
        loss.backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() and found[0]
    assert all(torch.equal(gradient, found[1][name]) for name, gradient in found[0].items())


@pytest.mark.parametrize("config", [FAST, SIMILARITY], ids=["elip", "similarity"])
@pytest.mark.parametrize("family", ["blip_vqa", "blip_itm", "instructblip"])
def test_under_autocast_the_text_side_learns_as_without_pruning(
    family: str, config: dict[str, Any]
) -> None:
    """No weight is cast without gradient for the guide, and then taken from autocast's cache."""
    model = make(family).train()

    def learning() -> set[str]:
        model.zero_grad()
        with torch.autocast("cpu"):
            loss = loss_of(model(**inputs(family=family)))
        loss.backward()
        return {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}

    expected = learning()
    elip_plugin.apply(model, config)
    assert learning() == expected


@pytest.mark.parametrize("family", [*READERS, *UNGUIDED])
def test_a_frozen_tower_in_evaluation_mode_is_pruned_where_the_model_trains(family: str) -> None:
    model = make(family).train()
    model.vision_model.eval().requires_grad_(False)
    guided = family in READERS
    handle = elip_plugin.apply(model, {**FAST, "text_weight": 0.9 if guided else 0.0})
    pruner = model.elip
    assert pruner.step_cost(handle.plan) == handle.plan.forward_cost(48)
    with recorded_lengths(layers_of(model)) as lengths:
        loss_of(model(**inputs(family=family))).backward()
    assert lengths == list(handle.plan.tokens)
    assert all(p.grad is None for p in model.vision_model.parameters())
    with recorded_lengths(layers_of(model)) as lengths, torch.no_grad():
        model.eval()(**inputs(family=family))
    assert set(lengths) == {65}


@pytest.mark.parametrize(
    ("family", "head"),
    [("blip_itm", "use_itm_head"), ("blip2_itm", "use_image_text_matching_head")],
)
def test_no_image_is_pruned_by_its_text_before_contrastive_scores(family: str, head: str) -> None:
    model, batch = make(family).eval(), {**inputs(family=family), head: False}
    before = tensors(model(**batch))
    handle = elip_plugin.apply(model, {**FAST, "eval_mode": "text"})
    with pytest.warns(UserWarning, match="without a text guide, so it keeps all tokens"):
        assert same(tensors(model(**batch)), before)
    with recorded_lengths(layers_of(model)) as lengths:
        model(**{**batch, head: True})
    assert lengths == list(handle.plan.tokens)
    assert len(kept(handle, lambda: model.train()(**batch))) == 3


@pytest.mark.parametrize("config", [FAST, SIMILARITY], ids=["elip", "similarity"])
def test_an_instruction_guides_each_frame_of_its_video(config: dict[str, Any]) -> None:
    model, batch = make("instructblip_video").train(), inputs(family="instructblip_video")
    images = batch["pixel_values"][:, :1].expand(-1, 2, -1, -1, -1)  # all frames alike
    handle = elip_plugin.apply(model, config)
    for tokens in kept(handle, lambda: model(**{**batch, "pixel_values": images})):
        first, second = tokens.unflatten(0, (-1, 2)).unbind(1)
        assert torch.equal(first, second)


def test_places_of_the_image_in_the_text_do_not_guide() -> None:
    """BLIP-2's newer processors write them before the text."""
    model = make("blip2_itm").train()
    handle, batch = elip_plugin.apply(model, FAST), inputs(family="blip2_itm")
    own = kept(handle, lambda: model(**batch))
    model.config.image_token_index = 96
    ids, mask = batch["input_ids"], batch["attention_mask"]
    places = torch.full((len(ids), QUERIES), 96)
    longer = {
        **batch,
        "input_ids": torch.cat([places, ids], dim=1),
        "attention_mask": torch.cat([torch.ones_like(places), mask], dim=1),
    }
    assert same(own, kept(handle, lambda: model(**longer)))


def test_defaults() -> None:
    """By the question where one is an input at test time; else as is recommended."""

    def default(family: str) -> Any:
        return elip_plugin.apply(make(family)).config

    read = elip_plugin.ElipConfig.from_mapping
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of small towers, in which looking ahead costs much
        assert default("blip_vqa") == read(FOR_QUESTIONS)
        assert default("instructblip") == default("instructblip_model") == read(SIMILARITY)
        for family in ("blip_itm", "blip2_itm", "blip_caption", "blip2", "blip2_model", "clip"):
            assert default(family) == read("half"), family
        asked = elip_plugin.apply(make("blip_vqa"), {"eval_mode": "text"}).config
        assert asked == read({**FOR_QUESTIONS, "eval_mode": "text"})
    assert find_reducer("similarity").text_alone


@pytest.mark.parametrize("family", UNGUIDED)
def test_where_the_text_is_the_answer_it_cannot_guide(family: str) -> None:
    model = make(family)
    with pytest.raises(ConfigError, match="has no text to guide its tower"):
        elip_plugin.apply(model, "fast")
    with pytest.raises(ConfigError, match="its text is the answer, and an image pruned by it"):
        elip_plugin.apply(model, {"preset": "fast", "eval_mode": "text"})
    with pytest.raises(ConfigError, match="choice_loss is for models whose text"):
        elip_plugin.apply(model, FOR_QUESTIONS)
    assert type(model).__module__.startswith("transformers")


def test_widths_without_a_map_between_them_are_refused() -> None:
    text = {**BLIP_TEXT, "hidden_size": 32}
    config = hf.BlipConfig(text_config=text, vision_config=VISION, image_text_hidden_size=24)
    for given in (FAST, SIMILARITY, None):
        with pytest.raises(UnsupportedModelError, match="make the widths equal"):
            elip_plugin.apply(hf.BlipForQuestionAnswering(config), given)
    matching = hf.BlipForImageTextRetrieval(config).train()
    batch = inputs(family="blip_itm")
    for given in (FAST, SIMILARITY):
        handle = elip_plugin.apply(matching, given)
        assert len(kept(handle, lambda: matching(**batch))) == 3
        handle.remove()


@pytest.mark.parametrize("name", ["Blip", "Blip2", "InstructBlip", "InstructBlipVideo"])
def test_towers_alone(name: str) -> None:
    config = getattr(hf, f"{name}VisionConfig")(**VISION)
    tower = getattr(hf, f"{name}VisionModel")(config).train()
    images = inputs()["pixel_values"]
    before = tower(images)[0]
    handle = elip_plugin.apply(tower, "fast")
    recorded = recorded_lengths(layers_of(tower))
    with recorded as lengths, handle.guide(torch.randn(len(images), 48)):
        tower(images)
    assert lengths == list(handle.plan.tokens)
    handle.remove()
    assert torch.equal(tower(images)[0], before)


def test_blip2_tower_with_its_projection() -> None:
    config = make("blip2_itm").config
    model = hf.Blip2VisionModelWithProjection(config).train()
    images = inputs()["pixel_values"]
    handle = elip_plugin.apply(model, {"preset": "fast", "text_weight": 0.0})
    with recorded_lengths(layers_of(model)) as lengths:
        model(pixel_values=images)
    assert lengths == list(handle.plan.tokens)


def test_every_family_of_blip_is_tested() -> None:
    from elip_plugin.hosts.transformers import blip

    tested = {type(make(name)) for name in ALL}
    assert set(blip.MODELS) - tested == {hf.InstructBlipVideoModel}
