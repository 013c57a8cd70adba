"""How much Hypothesis tries: a part in `make test`, all of research/faults.md in `make faults`."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings

from benchmarks.faults.counting import LONG

LARGE = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
COMMON = {"deadline": None, "suppress_health_check": LARGE, "database": None}

settings.register_profile("part", max_examples=20, derandomize=True, **COMMON)
settings.register_profile("all", max_examples=800, derandomize=True, **COMMON)
settings.register_profile(
    "first",  # a failure is not searched for its smallest input: of a mutant, one is enough
    settings.get_profile("part"),
    phases=[Phase.explicit, Phase.generate],
    report_multiple_bugs=False,
)
settings.load_profile(os.environ.get(LONG, "part"))  # `given` reads it when it decorates
