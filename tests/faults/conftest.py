"""How much Hypothesis tries: a part in `make test`, all of docs/faults.md in `make faults`."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

from benchmarks.faults.counting import is_long

LARGE = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
COMMON = {"deadline": None, "suppress_health_check": LARGE, "database": None}

settings.register_profile("part", max_examples=20, derandomize=True, **COMMON)
settings.register_profile("all", max_examples=800, derandomize=True, **COMMON)
settings.load_profile("all" if is_long() else "part")  # `given` reads it when it decorates
