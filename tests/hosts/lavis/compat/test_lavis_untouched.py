"""`import lavis` beside this package leaves LAVIS as it is; its repairs know nothing of pruning."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import threading
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("lavis")

from lavis.runners.runner_base import RunnerBase
from lavis_attributes import attributes, changes
from lavis_family import (
    ARCHS,
    VIT,
    pruned,
    run,
    section,
    stock,
)
from lavis_recorders import tower
from omegaconf import OmegaConf
from packaging.version import Version
from torch.optim import SGD

from elip_plugin import apply, find_handle
from elip_plugin.errors import DataError
from elip_plugin.hosts.lavis import compat
from elip_plugin.hosts.lavis.compat.offline import construction, read_settings
from elip_plugin.patching.install import find_pruner

HERE = Path(__file__).parents[3]
PINNED = Version(metadata.version("transformers")) < Version("4.27")

ALLOWED = (
    "elip_plugin.errors",
    "elip_plugin.files",
    "elip_plugin.hosts.lavis.compat",
    "elip_plugin.hosts.versions",
    "elip_plugin.patching.checkpoints",
    "elip_plugin.patching.monkeypatch",
)
"""What the repairs may import of this package."""


def imported(path: Path) -> set[str]:
    """All modules of this package that a file imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.startswith("elip_plugin")}


def foreign(name: str) -> bool:
    return not any(f"{name}.".startswith(f"{allowed}.") for allowed in ALLOWED)


def test_the_repairs_import_nothing_of_pruning(tmp_path: Path) -> None:
    files = sorted(Path(compat.__path__[0]).glob("*.py"))
    assert len(files) > 5
    assert [(f.name, n) for f in files for n in imported(f) if foreign(n)] == []
    wrong = tmp_path / "wrong.py"
    for line in (
        "from elip_plugin.patching.pruner import Pruner",
        "def f():\n    from elip_plugin.hosts.lavis import models",
        "import elip_plugin.config",
    ):
        wrong.write_text(line)
        assert [foreign(name) for name in imported(wrong)] == [True]


SNAPSHOT = """
import warnings
warnings.simplefilter("ignore")
import lavis_attributes
lavis_attributes.import_all()
before = lavis_attributes.attributes()
from elip_plugin.hosts.lavis import HOST
HOST.prepare()
HOST.register()
from lavis.common.registry import registry
assert registry.get_model_class("elip_albef_pretrain") is not None
assert len(before) > 3000, len(before)
print(lavis_attributes.changes(before))
"""


@pytest.mark.skipif(not PINNED, reason="LAVIS is broken beside newer libraries, and repaired")
def test_registering_changes_no_attribute_of_lavis() -> None:
    assert output(SNAPSHOT, ELIP_AUTOLOAD="0") == ("[]", "")


OUTPUTS = """
import sys, tempfile, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import lavis
from lavis_stock import TRAINED, local_tokenizer, losses
with tempfile.TemporaryDirectory() as folder, local_tokenizer(Path(folder)):
    found = [losses(TRAINED[name]) for name in ("albef_pretrain", "blip_pretrain", "blip_vqa")]
    print([loss.hex() for row in found for loss in row])
print("elip_plugin.hosts.lavis.names" in sys.modules, file=sys.stderr)
"""


@pytest.mark.slow
@pytest.mark.skipif(not PINNED, reason="LAVIS alone cannot be imported beside newer libraries")
def test_an_unpruned_model_computes_the_same_bits_without_this_package() -> None:
    alone, beside = output(OUTPUTS, ELIP_AUTOLOAD="0"), output(OUTPUTS, ELIP_AUTOLOAD="1")
    assert (alone[1], beside[1]) == ("False", "True")
    assert alone[0] == beside[0]


def output(code: str, **environment: str) -> tuple[str, str]:
    """What a process of its own prints, and the last line of its errors."""
    path = f"{HERE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    env = {**os.environ, "PYTHONPATH": path, **environment}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip(), (done.stderr.strip().splitlines() or [""])[-1]


class Runner(RunnerBase):
    """LAVIS' runner of one model, without data."""

    def __init__(self, model: Any) -> None:
        self._model, self._device, self._lr_sched = model, None, Schedule()
        self._optimizer, self._dataloaders = SGD(model.parameters(), 0.1), {"train": [0] * 4}
        self.config = SimpleNamespace(run_cfg=OmegaConf.create({"max_epoch": 2}))


class Schedule:
    """A learning-rate schedule."""

    def step(self, cur_epoch: int, cur_step: int) -> None:
        pass


@pytest.mark.parametrize("how", ["by name", "by apply", "the tower alone"])
def test_the_runners_are_extended_for_pruned_models_only(how: str) -> None:
    config = {"warmup": 0.5}
    model = pruned("blip_vqa", elip=config) if how == "by name" else stock("blip_vqa")
    if how == "by apply":
        apply(model, config)
    elif how == "the tower alone":
        apply(model.visual_encoder, config)
        apply(stock("blip_vqa"))  # a tower by itself may be of no model of LAVIS
    handle = find_handle(model)
    ours, theirs = Runner(model), Runner(stock("blip_vqa"))
    assert theirs.lr_scheduler is theirs._lr_sched
    assert ours.lr_scheduler is not ours._lr_sched
    levels = []
    for epoch, step in ((0, 0), (0, 2), (1, 0)):
        ours.lr_scheduler.step(cur_epoch=epoch, cur_step=step)
        levels.append(find_pruner(model).progress.level)
    assert levels == [0, 0.5, 1]
    handle.remove()
    assert ours.lr_scheduler is ours._lr_sched


@pytest.mark.parametrize("arch", ["albef_pretrain", "blip_classification", "clip"])
def test_a_forward_changes_nothing_of_lavis(arch: str) -> None:
    model = pruned(arch)
    run(arch, model)  # what is imported late is there
    before, seen = attributes(), []
    last = tower(model).norm if hasattr(tower(model), "norm") else tower(model).ln_post
    last.register_forward_hook(lambda *_: seen.append(changes(before)))
    run(arch, model)
    assert seen and not any(seen)


class Opaque:
    """What is no weight."""


def settings_of(arch: str) -> Any:
    return read_settings(section(arch, elip=None), ARCHS[arch].replaces)


def test_while_a_model_is_built_other_threads_have_lavis_own_lookups(tmp_path: Path) -> None:
    torch.save(Opaque(), tmp_path / "any.pt")
    base, loaded = ARCHS["blip_vqa"].replaces, []

    def load() -> None:
        loaded.append(torch.load(tmp_path / "any.pt", weights_only=False))

    with construction(settings_of("blip_vqa"), base):
        thread = threading.Thread(target=load)
        thread.start()
        thread.join()
        with pytest.raises(DataError, match="Opaque"):
            load()
    assert [type(value) for value in loaded] == [Opaque]


def test_one_thread_builds_at_a_time() -> None:
    """By turns: the second model's parts would replace the first one's."""
    settings, base = settings_of("blip_vqa"), ARCHS["blip_vqa"].replaces
    began, before = threading.Event(), attributes()

    def build() -> None:
        with construction(settings, base):
            began.set()

    thread = threading.Thread(target=build)
    with construction(settings, base):
        thread.start()
        assert not began.wait(0.3)
        assert changes(before)  # the lookups are replaced, and only in here
    thread.join()
    assert began.is_set()
    assert not [key for key in changes(before) if key[1] != "__warningregistry__"]


def test_models_of_two_threads_have_their_own_parts() -> None:
    widths = [32, 64] * 3
    made: dict[int, Any] = {}

    def build(i: int) -> None:
        made[i] = pruned("blip_caption", vit={**VIT, "width": widths[i]})

    threads = [threading.Thread(target=build, args=(i,)) for i in range(len(widths))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [made[i].visual_encoder.embed_dim for i in range(len(widths))] == widths
