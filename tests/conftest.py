"""Shared fixtures: small random-weight models, and known answers."""

from __future__ import annotations

import json
import logging
import os
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

with suppress(ImportError):
    import setuptools  # noqa: F401  # torch's compiler fails if distutils was imported first

# Before torch: on tensors this small a second thread costs more than it brings, and two
# processes at a time would wait for each other's.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Before any host: a test that asks for a model of the Hub would wait for a network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pytest
import torch

HERE = Path(__file__).parent
MODELS = HERE / "models"
# Before any host is imported: names of the tests' own small models.
os.environ["ELIP_MODEL_CONFIGS"] = str(MODELS)

from recorders import recorded_lengths  # noqa: E402, F401  # many tests take it from here

from elip_plugin import ElipConfig, Stage  # noqa: E402

PATCHES = 64
TINY: dict[str, Any] = json.loads((MODELS / "ViT-tiny.json").read_text())


def pytest_configure() -> None:
    """Where the wheel is meant to be tested, be sure that it is."""
    import elip_plugin

    if os.environ.get("ELIP_EXPECT_WHEEL"):
        assert "site-packages" in str(elip_plugin.__file__), elip_plugin.__file__


def pytest_runtest_setup() -> None:
    """Let no test depend on chance, or on which tests ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def pytest_unconfigure() -> None:
    """Let pytest's summary be the last lines: torch logs at exit, to streams closed by then."""
    logging.raiseExceptions = False


class Golden:
    """Inputs, weights and float64 outputs of the published research code."""

    def __init__(self, name: str) -> None:
        self.arrays = np.load(HERE / "golden" / f"{name}.npz")
        self.meta: dict[str, Any] = json.loads(str(self.arrays["meta"]))

    def part(self, prefix: str) -> dict[str, torch.Tensor]:
        """Arrays whose key starts with the prefix, as tensors; floats as float64."""
        keys = [key for key in self.arrays.files if key.startswith(prefix)]
        tensors = {key[len(prefix) :]: torch.from_numpy(self.arrays[key]) for key in keys}
        return {k: v.double() if v.is_floating_point() else v for k, v in tensors.items()}

    def config(self) -> ElipConfig:
        """The research code's settings as a configuration with counts."""
        meta = self.meta
        stages = zip(meta["begin_layer"], meta["num_act_layers"], meta["num_keep_tokens"])
        return ElipConfig(stages=tuple(Stage(*stage) for stage in stages))


@pytest.fixture
def tiny_clip() -> Callable[..., Any]:
    """A maker of small OpenCLIP models with random weights, equal for equal seeds."""
    open_clip = pytest.importorskip("open_clip")

    def make(seed: int = 0, custom_text: bool = False, **vision: Any) -> Any:
        torch.manual_seed(seed)
        cls = open_clip.CustomTextCLIP if custom_text else open_clip.CLIP
        config = {**TINY, "vision_cfg": {**TINY["vision_cfg"], **vision}}
        return cls(**config, output_dict=True).train()

    return make


@pytest.fixture
def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    """Random images [4, 3, 64, 64] and token ids [4, 24]."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(4, 3, 64, 64, generator=generator)
    return images, torch.randint(1, 49000, (4, 24), generator=generator)
