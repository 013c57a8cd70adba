"""The board on weights that people use: its scores, its plans, and the page that it writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import results_log
from benchmarks.pretrained import finetuning, labels, page, plans, scores
from benchmarks.pretrained.features import to_images
from benchmarks.tables import fill

ROOT = Path(__file__).parents[2]


def test_scores_of_unpruned_features_are_the_best() -> None:
    torch.manual_seed(0)
    x = torch.randn(40, 8)
    assert scores.overlap(x, x) == 1 and scores.mixed(x, x) == 1
    assert scores.cosine(x, x) == pytest.approx(1)
    noisy = x + torch.randn(40, 8)
    assert scores.overlap(noisy, x) < 0.8 and scores.cosine(noisy, x) < 0.95
    assert scores.overlap_in_index(x, x) == 1
    assert scores.overlap(noisy, x) < scores.overlap_in_index(noisy, x) < 1
    shifted = x.roll(1, 0)
    assert scores.mixed(shifted, x) == 0


def test_hits_count_ranks_from_zero() -> None:
    to_image, to_text = torch.tensor([[0, 1, 4, 5, 9]]), torch.tensor([2])
    found = scores.hits([(to_image, to_text)])
    assert found["t2i R@1"][0, 0] == pytest.approx(1 / 5)
    assert found["t2i R@5"][0, 0] == pytest.approx(3 / 5)
    assert found["t2i R@10"][0, 0] == 1
    assert (found["i2t R@1"][0, 0], found["i2t R@5"][0, 0]) == (0, 1)
    assert found["MRR"][0, 0] == pytest.approx(np.mean([1, 1 / 2, 1 / 5, 1 / 6, 1 / 10]))


def test_an_interval_holds_the_mean_and_is_wider_with_fewer_photographs() -> None:
    draw = np.random.default_rng(0)
    other = draw.random((6, 400))
    variant = other - 0.1 + 0.3 * draw.standard_normal((1, 400))
    middle, low, high = scores.interval(variant, other)
    assert low < middle < high and low < -0.1 < high
    _, low_few, high_few = scores.interval(variant[:, :40], other[:, :40])
    assert high_few - low_few > 2 * (high - low)
    assert scores.interval(other, other) == (0, 0, 0)


def test_ten_neighbors_vote_by_their_similarity() -> None:
    """Six of one class at a right angle are outvoted by four that are equal to the query."""
    index = torch.tensor([[1.0, 0]] * 4 + [[0, 1.0]] * 6 + [[-1.0, 0]] * 5)
    classes = torch.tensor([2] * 4 + [0] * 6 + [1] * 5)
    voted, near = labels.vote(index, torch.tensor([[3.0, 0], [-2.0, 0]]), classes)
    assert voted.tolist() == [2, 1]
    assert sorted(near[0].tolist()) == list(range(10))


def test_images_are_normalized_and_resized() -> None:
    pixels = np.full((2, 28, 28, 3), 255, np.uint8)
    images = to_images(pixels, 14)
    assert images.shape == (2, 3, 14, 14)
    assert images[0, :, 0, 0].tolist() == pytest.approx([2.2489, 2.4286, 2.64], abs=1e-3)


def test_every_plan_costs_the_share_that_it_stands_at() -> None:
    """In a process of its own: it makes other people's reducers known."""
    code = """if True:
        from benchmarks.pretrained import plans, rivals
        rivals.register()
        for share in plans.SHARES:
            for name in plans.REDUCERS:
                row = plans.row_of(name, share, 224)
                assert row is not None and abs(row.cost - share) < 0.02, (name, share, row)
        small = plans.row_of(plans.SMALLER, 0.5, 224)
        assert small.side == 168 and small.config is None and abs(small.cost - 0.54) < 0.01
    """
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_page_is_that_of_the_log() -> None:
    """Write it anew with `python -m benchmarks.pretrained report --write`."""
    rows = results_log.read(page.LOG)
    assert {row["name"] for row in rows if row["part"] == "test"} >= set(plans.NAMES)
    for path in page.PAGES:
        text = path.read_text()
        assert text == fill(text, page.tables(rows))
        assert f"`{plans.NAMES[0]}` |" in text


def trained(name: str, seed: int, score: float, longer: float) -> dict[str, object]:
    def one(value: float, steps: int) -> dict[str, object]:
        tested = {plan: {"t2i R@1": value} for plan in finetuning.EVALUATED}
        return {"trained": steps, "seconds": 2.0 * steps, "loss": 1.0, **tested}

    both = {"steps": one(score, 10), "operations": one(longer, 20)}
    return {"name": name, "seed": seed, "side": 112, "cost": 0.5, **both}


def test_fine_tuning_is_compared_by_seed_and_by_budget() -> None:
    rows = [trained("unpruned", seed, 0.1 * seed, 0.1 * seed) for seed in (1, 2, 3)]
    rows += [trained("half", seed, 0.1 * seed - 0.02, 0.1 * seed + 0.01) for seed in (1, 2)]
    first, second = finetuning.table(rows, 112, 10).splitlines()[2:]
    assert first.startswith("| `unpruned` | 0.50 | 20.0 | 20.0 |")
    assert second.startswith("| `half` | 0.50 | -2.0 ± 0.0 (2) | +1.0 ± 0.0 (2) |")
    assert second.endswith("| 2.0 |")
    for other in ((224, 10), (112, 30)):
        assert len(finetuning.table(rows, *other).splitlines()) == 2
