"""Whose text chooses, and what learns from the choice, on ALBEF and BLIP."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("lavis")

import lavis_family as family
import lavis_recorders as recorders

from elip_plugin import find_handle

SIMILARITY = {"reducer": "similarity", "preset": "fast"}
PLAIN = {"preset": "fast", "text_weight": 1.0}


def kept(arch: str, model: Any) -> list[torch.Tensor]:
    """What the last stages of the tower and of the momentum encoder's keep in one forward."""
    towers = [find_handle(recorders.tower(model, suffix)) for suffix in ("", "_m")]
    with towers[0].trace() as online, towers[1].trace() as momentum, torch.no_grad():
        family.run(arch, model)
    return [online.stages[-1].kept, momentum.stages[-1].kept]


@pytest.mark.parametrize("elip", [SIMILARITY, PLAIN], ids=["similarity", "elip"])
@pytest.mark.parametrize("arch", ["albef_pretrain", "blip_retrieval"])
def test_the_momentum_encoders_own_text_encoder_chooses_for_it(
    arch: str, elip: dict[str, Any]
) -> None:
    model = family.pruned(arch, elip={**elip, "prune_momentum": True})
    before = kept(arch, model)
    assert torch.equal(kept(arch, model)[1], before[1])
    text_encoder = model.text_encoder_m
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in getattr(text_encoder, "bert", text_encoder).parameters():
            weight.copy_(0.5 * torch.randn(weight.shape, generator=generator))
    after = kept(arch, model)
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])


@pytest.mark.parametrize("arch", ["blip_vqa", "albef_vqa"])
def test_in_evaluation_the_choice_teaches_nothing(arch: str) -> None:
    """Gradients of an evaluation, as a saliency map takes them, are the task's alone."""
    found = []
    for weight in (0.0, 2.0):
        reducer = {"name": "similarity", "choice_loss": weight}
        elip = {**SIMILARITY, "reducer": reducer, "eval_mode": "text"}
        model = family.pruned(arch, elip=elip).eval()
        handle = find_handle(model)
        with handle.trace() as trace:
            loss = model(family.samples())["loss"]
        assert trace.stages  # it is pruned
        loss.backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() and found[0]
    for name, gradient in found[0].items():
        assert torch.equal(gradient, found[1][name]), name
