"""Configurations that once were taken, refused or read wrongly."""

from __future__ import annotations

import math

import pytest

from elip_plugin import ElipConfig, Stage, plan
from elip_plugin.errors import ConfigError
from elip_plugin.patching.progress import config_at


@pytest.mark.parametrize("weight", [math.inf, math.nan])
def test_a_choice_loss_that_is_no_finite_number_is_refused(weight: float) -> None:
    reducer = {"name": "similarity", "choice_loss": weight}
    with pytest.raises(ConfigError, match=f"choice_loss must be .*, got {weight}"):
        ElipConfig.from_mapping({"preset": "fast", "reducer": reducer})


def test_a_presets_zero_text_weight_is_not_that_of_another_reducer() -> None:
    """`half` has 0 because ToMe reads no text; ELIP without its text would be another method."""
    given = ElipConfig.from_mapping({"preset": "half", "reducer": "elip"})
    assert given.text_weight == ElipConfig.text_weight
    chosen = ElipConfig.from_mapping({"preset": "half", "reducer": "elip", "text_weight": 0.0})
    assert chosen.text_weight == 0


@pytest.mark.parametrize("level", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("patches", [1, 2, 3])
def test_a_count_in_a_schedule_leaves_a_picture_of_few_patches_alone(
    patches: int, level: float
) -> None:
    """Halfway, 2 of 1 patch is a count of 1, which a user may not write."""
    config = ElipConfig((Stage(2, 1, 2),), warmup=0.5)
    now = config_at(level, config, patches)
    assert plan(now, num_patches=patches, depth=4, skip_idle=True).tokens == (1 + patches,) * 4
