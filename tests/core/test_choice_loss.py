"""The loss on the choice: it teaches the scores what the task needs, and changes no forward."""

from __future__ import annotations

import pytest
import torch
from tensors import randn

from elip_plugin.core.choice_loss import attach_selection_loss

KEPT = torch.tensor([[0, 2, 3], [1, 2, 4]])
FIRST, WEIGHT = 2, 0.7


def run(
    scale: float, taught: bool, dtype: torch.dtype = torch.float64, spread: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens after the stage, their gradient, and that of the logits behind the scores."""
    x = randn(2, FIRST + 3 + 1, 4).to(dtype).requires_grad_()
    logits = (spread * randn(2, 6, seed=1)).to(dtype).requires_grad_()
    scores = logits.softmax(dim=1)
    after = attach_selection_loss(x, scores, KEPT, FIRST, WEIGHT) if taught else x
    loss = scale * ((after * randn(2, 6, 4, seed=3).to(dtype)).sum(dim=(1, 2)) ** 2).sum()
    (loss + 0 * logits.sum()).backward()
    assert x.grad is not None and logits.grad is not None
    return after.detach(), x.grad, logits.grad


def test_the_forward_and_the_tokens_gradient_stay() -> None:
    plain, taught = run(1.0, False), run(1.0, True)
    assert torch.equal(plain[0], taught[0]) and torch.equal(plain[1], taught[1])
    assert not plain[2].any() and taught[2].any()


def test_the_scores_learn_by_the_cross_entropy_with_what_the_task_needs() -> None:
    x, gradient, given = run(1.0, True)
    rows = slice(FIRST, FIRST + 3)
    needed = -(gradient[:, rows] * x[:, rows]).sum(dim=2).clamp_max(0)
    assert (needed == 0).any() and (needed > 0).any(dim=1).all()
    target = needed**2 / (needed**2).sum(dim=1, keepdim=True)
    logits = randn(2, 6, seed=1).requires_grad_()
    # Normalized over the kept tokens, a softmax is that of their logits alone.
    kept = logits.gather(1, KEPT).log_softmax(dim=1)
    loss = -WEIGHT * needed.sum(dim=1).mean() * (target * kept).sum()
    (expected,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(given, expected)
    gone = torch.ones(2, 6).scatter(1, KEPT, 0).bool()
    assert given[gone].abs().max() < 1e-12  # what was dropped is not judged


@pytest.mark.parametrize("scale", [1e-3, 65536.0])
def test_it_scales_with_the_task(scale: float) -> None:
    torch.testing.assert_close(run(scale, True)[2], scale * run(1.0, True)[2])


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_squares_of_float32_needs_neither_vanish_nor_overflow(scale: float) -> None:
    """A square of 1e-25 is 0 in float32, and one of 1e25 is infinite."""
    given = run(scale, True, torch.float32)[2]
    assert given.abs().max() > 0.01 * scale
    torch.testing.assert_close(given / scale, run(1.0, True, torch.float32)[2])


def test_a_kept_score_that_is_0_in_float32_gives_no_nan() -> None:
    logits = 300 * randn(2, 6, seed=1).float()
    assert (logits.softmax(dim=1).gather(1, KEPT) == 0).any()
    x, gradient, given = run(1.0, True, torch.float32, spread=300.0)
    assert x.isfinite().all() and gradient.isfinite().all() and given.isfinite().all()


def test_without_a_gradient_there_is_nothing_to_learn() -> None:
    _, _, given = run(0.0, True)
    assert not given.any()
