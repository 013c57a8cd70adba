"""The reducer `similarity` on ALBEF and BLIP: tokens as the text encoder's cross-attention sees."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("lavis")

import lavis_family as family
import lavis_recorders as recorders

import elip_plugin
from elip_plugin.core.context import StageContext
from elip_plugin.core.guide import TextQueries
from elip_plugin.core.score import text_similarity
from elip_plugin.errors import ConfigError
from elip_plugin.hosts.lavis.guide import CaptionGuide
from elip_plugin.patching.install import find_pruner

ELIP = {"reducer": "similarity", "preset": "fast"}


def similarity(**options: Any) -> dict[str, Any]:
    return {"reducer": {"name": "similarity", **options}, "preset": "fast"}


READ = [arch for arch in family.ARCHS if not arch.startswith("clip") and arch != "blip_caption"]


def attention_maps(model: Any, given: dict[str, Any], mask: Tensor) -> list[Tensor]:
    """Mean attention of words and heads to the patches in each cross-attention [B, N]."""
    layers = [x for x in model.elip_encoder("").encoder.layer if hasattr(x, "crossattention")]
    attentions = [layer.crossattention.self for layer in layers]
    seen: dict[tuple[int, str], Tensor] = {}

    def keep(i: int, name: str) -> Any:
        def hook(module: Any, args: Any, out: Tensor) -> None:
            seen.setdefault((i, name), out.unflatten(-1, (attentions[i].num_attention_heads, -1)))

        return hook

    for i, attention in enumerate(attentions):
        for name in ("query", "key"):
            getattr(attention, name).register_forward_hook(keep(i, name))
    with torch.no_grad(), elip_plugin.find_handle(model).disabled():
        model.forward_encoder(given)
    maps = []
    for i, attention in enumerate(attentions):
        logits = torch.einsum("bshd,bthd->bsht", seen[i, "query"], seen[i, "key"])
        probabilities = (logits / attention.attention_head_size**0.5)[..., 1:].softmax(-1).mean(2)
        maps.append((probabilities * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))
    return maps


def reading_guide(model: Any, texts: Any, suffix: str = "") -> Any:
    """How a model's text encoder reads texts."""
    guide = CaptionGuide(model, model.tokenizer, texts, suffix)
    return guide.queries(model.elip.reducer.cross_attentions, gradient=False)


@pytest.mark.parametrize("count", [1, 2, 9])
@pytest.mark.parametrize("arch", ["blip_vqa", "albef_vqa"])
def test_the_scores_are_the_attention_of_the_first_cross_attentions(arch: str, count: int) -> None:
    model = family.pruned(arch, elip=similarity(cross_attentions=count)).eval()
    texts, given = ["a dog", "a red cat on the mat", "two", "yes"], family.samples()
    with torch.no_grad(), elip_plugin.find_handle(model).disabled():
        tokens = model.visual_encoder.forward_features(given["image"])
    mask = model.elip_tokenize(model.tokenizer, texts).attention_mask
    assert mask.sum(1).unique().numel() > 1  # some are padded
    theirs = attention_maps(model, {**given, "text_input": texts}, mask)[:count]
    first, further = reading_guide(model, texts)
    assert first.shape == (4, mask.shape[1] * 2, 32) and not first.requires_grad
    assert (further is None) == (len(theirs) == 1)
    # The keys' bias adds the same to each token.
    context = StageContext(1, first, 1.0, further=further)
    ours = text_similarity(tokens, torch.nn.Identity(), context)
    torch.testing.assert_close(ours, sum(theirs) / len(theirs), rtol=1e-4, atol=1e-6)
    assert ours.std(1).min() > 1e-4


@pytest.mark.parametrize("arch", READ)
def test_every_arch_trains_with_it_and_its_text_decides(arch: str) -> None:
    model = family.pruned(arch, elip={**ELIP, "final_unpruned": 0.5})
    handle = elip_plugin.find_handle(model)
    handle.update_progress(0, 10)
    with recorders.seen(model) as lengths:
        _, gradients = family.step(arch, model)
    assert lengths[: len(handle.plan.tokens)] == list(handle.plan.tokens)
    if arch not in family.EXTRACTORS:
        assert any(name.startswith("visual_encoder.blocks") for name in gradients)
    kept = []
    for captions in (family.CAPTIONS, family.OTHERS):
        with handle.trace() as trace:
            family.run(arch, model, family.samples(captions))
        kept.append(trace.stages[-1].kept)
    assert not torch.equal(*kept)
    handle.update_progress(9, 10)
    with recorders.seen(model) as lengths:
        family.run(arch, model)
    assert {*lengths} == {17}


@pytest.mark.parametrize("arch", ["albef_pretrain", "albef_retrieval", "albef_vqa"])
def test_the_text_pass_runs_as_often_as_without_pruning(arch: str) -> None:
    calls = []
    for elip in ({"preset": "paper", "text_weight": 0.0}, ELIP):
        model = family.pruned(arch, elip=elip)
        with recorders.text_calls(model) as modes:
            family.run(arch, model)
        calls.append(" ".join(modes).replace("multimodal", "text fusion").split())
    assert sorted(calls[0]) == sorted(calls[1])


@pytest.mark.parametrize("arch", ["blip_vqa", "albef_vqa"])
def test_questions_choose_at_test_time_too(arch: str) -> None:
    model = family.pruned(arch, elip={**ELIP, "eval_mode": "text"}).eval()
    handle = elip_plugin.find_handle(model)
    with recorders.seen(model) as lengths:
        family.evaluate(arch, model)
    assert lengths[:12] == list(handle.plan.tokens)
    given = family.samples()
    with handle.trace() as trace, torch.no_grad():
        model.forward_encoder(dict(given))
    own = trace.stages[-1].kept
    guide = reading_guide(model, given["text_input"])
    with handle.trace() as trace, torch.no_grad(), model.elip.asked(guide=guide):
        model.visual_encoder.forward_features(given["image"])
    assert torch.equal(own, trace.stages[-1].kept)


def test_the_text_encoder_reads_once_per_forward() -> None:
    model = family.pruned("blip_vqa", elip=ELIP)
    assert len(elip_plugin.find_handle(model).plan.stages) > 1
    given = family.samples()
    first, further = reading_guide(model, given["text_input"])
    assert further is not None
    shapes: list[torch.Size] = []

    def counted(y: Tensor) -> Tensor:
        shapes.append(y.shape)
        return further(y)

    for _ in range(2):
        with model.elip.asked(guide=TextQueries(first, counted)):
            model.visual_encoder.forward_features(given["image"])
    assert shapes == [(4, 17, 32)] * 2


def test_a_pruned_momentum_encoder_is_guided_by_its_own_text_encoder() -> None:
    model = family.pruned("albef_pretrain", elip={**ELIP, "prune_momentum": True})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.text_encoder_m.parameters():
            weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
    momentum, given = model.visual_encoder_m, family.samples()
    with elip_plugin.Handle(momentum).trace() as trace, recorders.seen(model, "_m") as lengths:
        family.run("albef_pretrain", model, given)
    assert lengths == list(elip_plugin.find_handle(model).plan.tokens)
    kept = [stage.kept for stage in trace.stages]

    def kept_by(suffix: str) -> list[Tensor]:
        reading = reading_guide(model, given["text_input"], suffix)
        with (
            elip_plugin.Handle(momentum).trace() as trace,
            find_pruner(momentum).asked(guide=reading),
            torch.no_grad(),
        ):
            momentum(given["image"])
        return [stage.kept for stage in trace.stages]

    assert len(kept) > 1 and all(torch.equal(*pair) for pair in zip(kept, kept_by("_m")))
    assert any(not torch.equal(*pair) for pair in zip(kept, kept_by("")))


@pytest.mark.parametrize("arch", ["blip_vqa", "albef_vqa", "blip_retrieval"])
def test_the_loss_on_the_choice_teaches_the_text_side_and_changes_no_forward(arch: str) -> None:
    losses, gradients = [], []
    for weight in (0.0, 2.0):
        model = family.pruned(arch, elip=similarity(choice_loss=weight))
        out, found = family.step(arch, model)
        losses.append(out)
        gradients.append(found)
    recorders.assert_equal(*losses)
    changed = {
        name for name, g in gradients[0].items() if not torch.allclose(g, gradients[1][name])
    }
    bert = model.elip_encoder("")
    name = next(n for n, m in model.named_modules() if m is bert)
    first = next(i for i, x in enumerate(bert.encoder.layer) if hasattr(x, "crossattention"))
    learns = f"{name}.encoder.layer.{first}.crossattention.self"
    assert {
        f"{learns}.query.weight",
        f"{learns}.key.weight",
        "visual_encoder.norm.weight",
    } <= changed
    assert not [n for n in changed if n.startswith("visual_encoder.") and ".norm." not in f".{n}"]


@pytest.mark.parametrize(
    ("arch", "elip", "message"),
    [
        (
            "clip",
            similarity(choice_loss=1.0),
            "choice_loss is for models whose text encoder reads",
        ),
        ("blip_vqa", {"reducer": {"name": "elip", "choice_loss": 1.0}}, "has no option .choice_l"),
        ("blip_vqa", {"cross_attentions": 3}, "is an option of a reducer"),
        ("blip_vqa", similarity(choice_loss=-1.0), "choice_loss must be a number from 0 up"),
        ("blip_vqa", similarity(cross_attentions=0), "cross_attentions must be an integer from 1"),
    ],
)
def test_where_nothing_would_learn_it_is_refused(arch: str, elip: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        family.pruned(arch, elip=elip)
