"""A reducer of another package, found by its entry point: plan, cost, trace, bench."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from entry_points import elip, installed_package
from torch import Tensor

import elip_plugin
from elip_plugin.core.score import score
from elip_plugin.core.select import Selection, select
from elip_plugin.errors import ConfigError
from elip_plugin.measure.counts import count_flops
from elip_plugin.reducers import PlannedStage, Reducer, StageContext, reducers

CONFIG: dict[str, Any] = {"preset": "paper", "reducer": "lowest", "text_weight": 0.0}


@dataclass(frozen=True)
class Lowest(Reducer):
    """Keep what the class token attends to least."""

    name = "lowest"
    looks_ahead = True

    sign: int = -1

    def option_faults(self) -> list[str]:
        return [] if self.sign in (-1, 1) else [f"sign must be -1 or 1, got {self.sign}"]

    def decide(self, x: Tensor, stage: PlannedStage, context: StageContext) -> Selection:
        return select(1 + self.sign * score(x, stage, context), stage.keep)


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path) -> Iterator[None]:
    group = "elip_plugin.reducers"
    with installed_package(tmp_path, "lowest", group, f"{__name__}:Lowest"):
        yield


def test_its_plan_counts_the_lookahead() -> None:
    config = elip_plugin.ElipConfig.from_mapping(CONFIG)
    ours, elips = (
        elip_plugin.plan(c, num_patches=64, depth=12)
        for c in (config, elip_plugin.ElipConfig.preset("paper"))
    )
    assert ours.tokens == elips.tokens
    assert ours.forward_cost(32) == elips.forward_cost(32) > 1


def test_it_prunes_is_traced_and_costs_what_is_counted(tiny_clip: Any) -> None:
    images, counted = torch.randn(2, 3, 64, 64), []
    for reducer in ("elip", "lowest"):  # which look through the same blocks
        model = tiny_clip().eval()
        handle = elip_plugin.apply(model, {**CONFIG, "reducer": reducer, "eval_mode": "image"})
        counted.append(count_flops(lambda model=model: model.encode_image(images)))
    assert counted[0] == counted[1]
    full = count_flops(lambda: tiny_clip().eval().encode_image(images))
    assert counted[1] / full == pytest.approx(handle.plan.forward_cost(32), rel=0.02)
    with handle.trace() as trace:
        model.encode_image(images)
    assert [s.kept.shape[1] for s in trace.stages] == [s.keep for s in handle.plan.stages]


def test_its_option_is_checked_shown_and_used(tiny_clip: Any) -> None:
    given = {"name": "lowest", "sign": 1}
    config = elip_plugin.ElipConfig.from_mapping({**CONFIG, "reducer": given})
    assert config.reducer == Lowest(sign=1)
    mapping = config.to_mapping()
    assert mapping["reducer"] == given
    assert elip_plugin.ElipConfig.from_mapping(mapping) == config
    for option, message in (
        ({"sign": 2}, "sign must be -1 or 1, got 2"),
        ({"sign": "up"}, "sign must be an integer, got 'up'"),
        ({"sgn": 1}, r"reducer 'lowest' has no option 'sgn'.* did you mean \['sign'\]"),
    ):
        with pytest.raises(ConfigError, match=message):
            elip_plugin.ElipConfig.from_mapping({**CONFIG, "reducer": {"name": "lowest", **option}})
    with pytest.raises(ConfigError, match=r"'elip' has no option 'sign'.* \['lowest'\] have it"):
        elip_plugin.ElipConfig.from_mapping({"reducer": {"name": "elip", "sign": 1}})
    with pytest.raises(ConfigError, match=r"key 'sign' .* reducer: \{name: lowest, sign"):
        elip_plugin.ElipConfig.from_mapping({"reducer": "lowest", "sign": 1})
    images, kept = torch.randn(2, 3, 64, 64), []
    for sign in (-1, 1):
        model = tiny_clip().eval()
        options = {"name": "lowest", "sign": sign}
        handle = elip_plugin.apply(model, {**CONFIG, "eval_mode": "image", "reducer": options})
        with handle.trace() as trace:
            model.encode_image(images)
        kept.append(trace.stages[0].kept)
    assert not torch.equal(*kept)


def test_it_is_measured_beside_the_others() -> None:
    pytest.importorskip("open_clip")
    command = "bench speed --model ViT-tiny --batch 2 --rounds 1 --passes tower --device cpu"
    assert "lowest" in elip(command)


def test_a_name_that_is_taken_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lowest, "name", "evit")
    reducers.cache_clear()
    with pytest.raises(ConfigError, match=r"takes the name 'evit', which .*evit has"):
        reducers()
