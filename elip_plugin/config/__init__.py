"""What to prune: stages, text weight, merging, evaluation mode; presets; mappings."""

from elip_plugin.config.checks import SCHEDULES
from elip_plugin.config.elip_config import (
    PAPER,
    PRESETS,
    RECOMMENDED,
    SAYS_PLAN,
    ElipConfig,
)
from elip_plugin.config.stage import Stage

__all__ = [
    "PAPER",
    "PRESETS",
    "RECOMMENDED",
    "SAYS_PLAN",
    "SCHEDULES",
    "ElipConfig",
    "Stage",
]
