"""Ward: pairs by their cost, averaged at the mean of their norms, in the order of the picture."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations, pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from elip_plugin.config import ElipConfig
from elip_plugin.errors import PlanError
from elip_plugin.planning import plan
from elip_plugin.reducers import ward
from elip_plugin.reducers.tome import merge_inside
from elip_plugin.reducers.ward import CANDIDATES, LAST, ROUNDS, Anywhere, Ward, cheapest

WARD = Ward()


def drawn(batch: int = 2, tokens: int = 12, width: int = 8) -> tuple[Any, Any, Any]:
    """Keys, tokens and sizes, of which the first token is a prefix."""
    torch.manual_seed(0)
    keys = torch.randn(batch, 2, 1 + tokens, width // 2, dtype=torch.float64)
    x = torch.randn(batch, 1 + tokens, width, dtype=torch.float64)
    sizes = torch.randint(1, 9, (batch, 1 + tokens)).double()
    sizes[:, 0] = 1
    return keys, x, sizes


@pytest.mark.parametrize("query", [True, False])
@pytest.mark.parametrize(("remove", "most"), [(1, 150), (3, 150), (3, 2), (6, 150)])
def test_the_cheapest_pairs_leave_in_rounds(
    query: bool, remove: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ward, "MOST", most)
    keys, x, sizes = drawn()
    asked = torch.randn(2, 2, 1, 4, dtype=torch.float64)
    pairs = WARD.match(torch.cat([asked, keys], dim=2) if query else keys, x, sizes, remove, 1)
    assert pairs.gone.shape == (2, remove)
    for b in range(len(x)):
        k, y, s = (
            F.normalize(keys[b].mean(0)[1:], dim=-1),
            F.normalize(x[b, 1:], dim=-1),
            sizes[b, 1:],
        )
        if query:
            heads = [(asked[b, h, 0] @ keys[b, h].T).exp() * sizes[b] for h in range(2)]
            s = (s * sum(row / row.sum() for row in heads)[1:] / 2).sqrt()
        s = s * x[b, 1:].norm(dim=-1)
        near = {m: max([0.0, *(float(k[n] @ k[m]) for n in range(m))]) for m in range(12)}
        compared = remove + min(CANDIDATES * remove, most)
        first = sorted(near, key=lambda m: (1 - near[m]) ** 2 * float(s[m]))
        there, went = list(range(12)), {}
        for i in range(ROUNDS):
            costs = {}
            for n, m in combinations(there, 2):
                far = 2 - k[n] @ k[m] - y[n] @ y[m]
                costs[m, n] = float(far * (s[n] * s[m] / (s[n] + s[m])) ** 0.5)
            best = {
                m: min((n for n in there if n < m), key=lambda n: costs[m, n]) for m in there[1:]
            }
            best = {m: n for m, n in best.items() if m in first[:compared]}
            count = remove * (i + 1) // ROUNDS - remove * i // ROUNDS
            leaving = sorted(best, key=lambda m: costs[m, best[m]])[:count]
            went |= {m: best[m] for m in leaving}
            added = s.clone()
            for m in leaving:
                added[end(m, went)] += s[m]
            there, s = [n for n in there if n not in went], added
        found = zip(pairs.gone[b].tolist(), pairs.into[b].tolist(), strict=True)
        assert dict(found) == {m: end(m, went) for m in went}


def end(token: int, went: Mapping[int, int]) -> int:
    """Follow a token to the one that it is in."""
    while token in went:
        token = went[token]
    return token


def test_a_token_may_leave_into_one_that_leaves_in_the_same_round() -> None:
    along = torch.tensor([0.0, 1.0, 2.1, 50.0, 70.0, 90.0, 110.0, 130.0, 150.0]).deg2rad()
    x = torch.stack([along.cos(), along.sin()], dim=-1)[None]
    pairs = cheapest(x, x, torch.ones(1, 9), 2 * ROUNDS)
    assert pairs.left().tolist() == [[0]]
    assert (pairs.into == 0).all()


def test_a_merged_token_has_the_mean_of_the_patches_norms_and_the_direction_of_their_mean() -> None:
    keys, x, sizes = drawn()
    pairs = WARD.match(keys, x, sizes, 5, 1)
    before = torch.rand(2, 13, dtype=torch.float64)
    out, counts, resultants = WARD.merge(x, sizes, before, pairs, 1)
    assert resultants is not None and torch.equal(resultants[:, 0], before[:, 0])
    groups = pairs.groups()
    assert out.shape == (2, 8, 8) and torch.equal(counts.sum(1), sizes.sum(1))
    torch.testing.assert_close(out[:, 0], x[:, 0], rtol=1e-12, atol=0)
    for b in range(2):
        for t in range(7):
            mine = (groups[b] == t).nonzero().flatten() + 1
            weights = sizes[b, mine] / sizes[b, mine].sum()
            mean = (weights[:, None] * x[b, mine]).sum(0)
            norm = (weights * x[b, mine].norm(dim=-1)).sum()
            expected = mean / mean.norm() * norm
            torch.testing.assert_close(out[b, 1 + t], expected, rtol=1e-12, atol=1e-14)
            assert counts[b, 1 + t] == sizes[b, mine].sum()
            shorter = (weights * before[b, mine]).sum() * mean.norm() / norm
            torch.testing.assert_close(resultants[b, 1 + t], shorter, rtol=1e-12, atol=0)


def test_tokens_without_a_length_stay_so() -> None:
    x = torch.zeros(1, 5, 8)
    pairs = WARD.match(torch.zeros(1, 2, 5, 4), x, torch.ones(1, 5), 2, 1)
    out, _, resultants = WARD.merge(x, torch.ones(1, 5), None, pairs, 1)
    assert torch.equal(out, torch.zeros(1, 3, 8)) and torch.equal(resultants, torch.ones(1, 3))


def test_values_are_multiplied_by_the_root_of_the_resultants() -> None:
    given: list[Any] = []

    class Block:
        elip_scale = None

        def elip_attend(self, x: Any, bias: Any, **options: Any) -> Any:
            given.append(options)
            return torch.zeros_like(x), torch.randn(1, 2, x.shape[1] + 1, 4)

        def elip_stochastic_depth(self, added: Any) -> Any:
            return added

        def elip_feed_forward(self, x: Any) -> Any:
            return torch.zeros_like(x)

    block: Any = Block()
    options: Any = {"how": WARD, "prefix": 1, "weigh": True}
    x, sizes, resultants, *_ = merge_inside(block, torch.randn(1, 9, 8), None, 2, **options)
    assert given == [{"with_query": True}] and 0 < (resultants < 1).sum() <= 2
    merge_inside(block, x, sizes, 0, resultants=resultants, **options)
    assert torch.equal(given[1]["factors"], resultants.sqrt()) and len(given[1]) == 1


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 15), st.data())
def test_tokens_stay_in_the_order_of_the_picture(tokens: int, data: Any) -> None:
    remove = data.draw(st.integers(1, tokens // 2))
    keys, x, sizes = drawn(tokens=tokens)
    pairs = WARD.match(keys, x, sizes, remove, 1)
    left = pairs.left()
    assert isinstance(pairs, Anywhere) and (left.diff(dim=1) > 0).all()
    assert left.shape[1] == tokens - remove
    groups = pairs.groups()
    numbers = torch.arange(tokens - remove).expand(2, -1)
    assert torch.equal(groups.gather(1, left), numbers)
    into = groups.gather(1, pairs.into)
    assert torch.equal(groups.gather(1, pairs.gone), into)
    assert len(set(pairs.gone[0].tolist()) | set(left[0].tolist())) == tokens


def test_a_large_group_is_left_alone_where_small_ones_are_as_near() -> None:
    x = torch.tensor([[[9.0, 9], [1, 0], [1, 0.1], [0, 1], [0.1, 1]]])
    keys = x.unsqueeze(1)
    even = torch.ones(1, 5)
    pairs = WARD.match(keys, x, torch.tensor([[1.0, 30, 30, 1, 1]]), 1, 1)
    assert pairs.gone.tolist() == [[3]] and pairs.into.tolist() == [[2]]
    assert WARD.match(keys, x, even, 1, 1).gone.shape == (1, 1)


@pytest.mark.parametrize("keep", [0.8, 0.5, 0.36])
@pytest.mark.parametrize("depth", [6, 12, 24])
def test_the_blocks_save_what_the_stages_ask(keep: float, depth: int) -> None:
    config = ElipConfig.from_mapping(
        {"reducer": "ward", "stages": [{"block": 0, "lookahead": 1, "keep": keep}]}
    )
    found = plan(config, num_patches=256, depth=depth)
    assert found.removed == pytest.approx((1 - keep) * 256 / 257, abs=0.01)


@settings(deadline=None)
@given(st.integers(49, 2000), st.integers(6, 40), st.floats(0.55, 0.8))
def test_the_more_is_kept_the_later_tokens_leave(patches: int, depth: int, keep: float) -> None:
    def half(share: float) -> list[int]:
        left = WARD.entering(patches, depth, round((1 - share) * patches * depth))
        assert left[0] == patches and all(b <= a <= 2 * b for a, b in pairwise(left))
        assert sum(left) == pytest.approx(share * patches * depth, rel=0.01)
        return left

    left, more = half(keep), half(keep + 0.1)
    assert left[-1] == pytest.approx(LAST * keep**2 * patches, abs=1 + 0.01 * patches)
    gone, gone_later = ([patches - x for x in found] for found in (left, more))
    # What has left by the middle is a smaller part of what has left at the end.
    middle = depth // 2
    assert gone_later[middle] / gone_later[-1] <= gone[middle] / gone[-1] + 1 / 8


@pytest.mark.parametrize(("patches", "depth", "left"), [(4, 2, [4, 3]), (16, 3, [16, 15, 11])])
def test_a_tower_of_few_blocks_removes_no_more_than_asked(
    patches: int, depth: int, left: list[int]
) -> None:
    assert WARD.entering(patches, depth, round(0.1 * patches * depth)) == left


@pytest.mark.parametrize(("keep", "same_share"), [(0.42, True), (0.6, False)])
def test_few_tokens_leave_each_block_by_the_same_share(keep: float, same_share: bool) -> None:
    left = WARD.entering(256, 12, round((1 - keep) * 256 * 12))
    shares = [b / a for a, b in pairwise(left)]
    assert (max(shares) - min(shares) < 0.03) == same_share
    assert sum(left) == pytest.approx(keep * 256 * 12, rel=0.01) and left[-1] >= 16


def test_more_than_pairs_can_save_is_refused() -> None:
    config = ElipConfig.from_mapping(
        {"reducer": "ward", "stages": [{"block": 0, "lookahead": 1, "keep": 0.1}]}
    )
    with pytest.raises(PlanError, match=r"at most half of the tokens .* use the reducer pool"):
        plan(config, num_patches=256, depth=12)
