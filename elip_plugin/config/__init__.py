"""What to prune: stages, text weight, merging, evaluation mode; presets; mappings."""

from elip_plugin.config.checks import SCHEDULES
from elip_plugin.config.elip_config import (
    OUTSCORED,
    PAPER,
    PRESETS,
    RECOMMENDED,
    SAYS_PLAN,
    TRAINING_PRESETS,
    ElipConfig,
)
from elip_plugin.config.stage import Stage

__all__ = [
    "OUTSCORED",
    "PAPER",
    "PRESETS",
    "RECOMMENDED",
    "SAYS_PLAN",
    "SCHEDULES",
    "TRAINING_PRESETS",
    "ElipConfig",
    "Stage",
]
