"""The YAML files of LAVIS' projects: each names things that exist, and only keys that are read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lavis")

import lavis.common.optims
import lavis.datasets.builders
import lavis.models
import lavis.tasks
from lavis.common.config import Config, create_runner_config_validator
from lavis.common.registry import registry
from omegaconf import OmegaConf

from elip_plugin import ElipConfig, plan
from elip_plugin.hosts.lavis.build import SECTION
from elip_plugin.hosts.lavis.compat import paths
from elip_plugin.hosts.lavis.compat.datasets import NAME as PAIRS
from elip_plugin.hosts.lavis.compat.offline import BERT_FAMILY, CLIP_FAMILY
from elip_plugin.hosts.lavis.compat.paths import configs_root, find_config
from elip_plugin.hosts.lavis.compat.runner import NAME as RUNNER
from elip_plugin.hosts.lavis.models import ARCHS, SMALL
from elip_plugin.hosts.lavis.names import PREFIX, register

ROOT = configs_root()
PROJECTS = sorted((ROOT / "projects").rglob("*.yaml"))
MODELS = sorted((ROOT / "models").glob("*.yaml"))
GPUS = 4  # in the commands for several GPUs

# What LAVIS' models read.
LAVIS_MODEL_KEYS = {
    *("arch", "model_type", "load_finetuned", "pretrained", "image_size", "vit_layer_norm_epsilon"),
    *("med_config_path", "queue_size", "alpha", "momentum", "max_txt_len", "num_classes"),
    "negative_all_rank",
}
OUR_MODEL_KEYS = {SECTION, *BERT_FAMILY, *CLIP_FAMILY}
# What its runner reads, but its own list of run keys leaves out.
MORE_RUN_KEYS = {"beta2"}
PROCESSOR_KEYS = {"name", "image_size", "prompt"}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.fixture(autouse=True, scope="module")
def registered() -> None:
    register()


@pytest.fixture(params=PROJECTS, ids=name_of)
def project(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


@pytest.fixture
def written(project: Path) -> Any:
    """The project as it stands in the file."""
    return OmegaConf.to_container(OmegaConf.load(project), resolve=True)


@pytest.fixture
def merged(project: Path) -> Any:
    """The project with LAVIS' and our defaults, as the runner sees it."""

    class Arguments:
        cfg_path, options = str(project), None

    return Config(Arguments()).to_dict()


def test_all_kinds_of_project_are_there() -> None:
    kinds = {name_of(path).removeprefix("projects/").removesuffix(".yaml") for path in PROJECTS}
    tasks = ("pretrain", "retrieval", "vqa", "nlvr", "snli_ve", "openmoji")
    expected = {f"{family}/{task}" for family in ("albef", "blip") for task in tasks}
    assert kinds == {*expected, "blip/caption", "blip/scenes", "clip/pretrain", "clip/openmoji"}


def test_header_is_the_command_that_runs_it(project: Path, written: Any) -> None:
    file = f"lavis_configs/{name_of(project)}"
    header = project.read_text(encoding="utf-8").split("model:")[0].splitlines()
    assert header[0] == f"# elip lavis train --cfg-path {file}"
    if written["run"]["device"] == "cuda":
        start = f"# torchrun --nproc_per_node {GPUS} -m elip_plugin"
        assert header.pop(1) == f"{start} lavis train --cfg-path {file}"
    assert header[1].startswith("# Needs: ")
    assert all(line.startswith("# ") for line in header)


def test_model_is_known(written: Any) -> None:
    arch = written["model"]["arch"]
    assert arch.startswith(PREFIX)
    base = registry.get_model_class(arch.removeprefix(PREFIX))
    assert base is not None
    own = set(ARCHS[arch.removeprefix(PREFIX)].PRETRAINED_MODEL_CONFIG_DICT)
    assert own - set(base.PRETRAINED_MODEL_CONFIG_DICT) <= {SMALL}
    assert written["model"]["model_type"] in own


def test_data_task_and_schedule_are_known(written: Any) -> None:
    run = written["run"]
    assert written["datasets"]
    assert all(registry.get_builder_class(name) for name in written["datasets"])
    assert registry.get_task_class(run["task"])
    assert registry.get_lr_scheduler_class(run["lr_sched"])
    assert run["runner"] == RUNNER


def test_run_section_is_what_lavis_validates(written: Any) -> None:
    run = {key: written["run"][key] for key in written["run"].keys() - MORE_RUN_KEYS - {"runner"}}
    create_runner_config_validator().validate(run)


def test_no_key_is_unread(written: Any) -> None:
    assert written["model"].keys() <= LAVIS_MODEL_KEYS | OUR_MODEL_KEYS
    for section in written["datasets"].values():
        assert section.keys() <= {"build_info", "vis_processor", "text_processor"}
        for group in ("vis_processor", "text_processor"):
            for processor in section.get(group, {}).values():
                assert processor.keys() <= PROCESSOR_KEYS


@pytest.mark.parametrize("path", MODELS, ids=name_of)
def test_no_key_of_a_model_is_unread(path: Path) -> None:
    model = OmegaConf.load(path).model
    assert {str(key) for key in model} <= LAVIS_MODEL_KEYS | OUR_MODEL_KEYS
    family = CLIP_FAMILY if model.arch == f"{PREFIX}clip" else BERT_FAMILY
    assert {str(key) for key in model} & OUR_MODEL_KEYS <= {SECTION, *family}
    config = ARCHS[model.arch.removeprefix(PREFIX)].PRETRAINED_MODEL_CONFIG_DICT[SMALL]
    assert Path(config).samefile(path)


def test_listed_keys_are_read_by_lavis() -> None:
    root = Path(lavis.__file__).parent
    files = [*(root / "models").rglob("*.py"), *(root / "runners").glob("*.py")]
    files += [*(root / "common").glob("*.py"), *(root / "tasks").glob("*.py")]
    files += (root / "processors").glob("*.py")
    source = "\n".join(path.read_text(encoding="utf-8") for path in files)
    keys = LAVIS_MODEL_KEYS | MORE_RUN_KEYS | PROCESSOR_KEYS
    unread = [
        k for k in keys if not re.search(rf'(get\(|\[)"{k}"|(cfg|config|model)\.{k}\b', source)
    ]
    assert unread == []


def test_pruning_fits_the_tower(merged: Any) -> None:
    model = merged["model"]
    if "clip" in model:
        vision = model["clip"]["vision_cfg"]
        side, patch, depth = (vision[key] for key in ("image_size", "patch_size", "layers"))
        assert vision["width"] % 64 == 0
    elif model["arch"] == "elip_clip":
        side, patch, depth = 224, 16, 12
        assert model["model_type"] == "ViT-B-16"
    else:
        vit = model.get("vit", {})
        side, patch, depth = model["image_size"], vit.get("patch_size", 16), vit.get("depth", 12)
        assert model.get("vit_type", "base") == "base"
    made = plan(
        ElipConfig.from_mapping(model["elip"]), num_patches=(side // patch) ** 2, depth=depth
    )
    assert side % patch == 0
    assert made.stages and 0.25 < made.removed < 0.55
    for section in merged["datasets"].values():
        assert {processor["image_size"] for processor in section["vis_processor"].values()} == {
            side
        }


def test_narrow_towers_have_whole_heads(merged: Any) -> None:
    model = merged["model"]
    for sizes, width, heads in (
        ("vit", "width", "heads"),
        ("bert", "hidden_size", "num_attention_heads"),
    ):
        if sizes in model:
            assert model[sizes][width] % model[sizes][heads] == 0
    if "albef" in model["arch"]:  # 6 layers of text and 6 that fuse are fixed in its code
        assert "num_hidden_layers" not in model.get("bert", {})


def test_queue_is_a_multiple_of_the_batch(merged: Any) -> None:
    if "queue_size" not in merged["model"]:
        pytest.skip("no queue")
    batch = merged["run"]["batch_size_train"]
    for processes in (1, GPUS if merged["run"]["device"] == "cuda" else 1):
        assert merged["model"]["queue_size"] % (batch * processes) == 0


def test_own_data_sections_have_no_fault(merged: Any) -> None:
    for name, section in merged["datasets"].items():
        if name == PAIRS:
            splits = set(section["build_info"]["annotations"])
            assert set(merged["run"].get("test_splits", [])) <= splits
        elif "nlvr" in name or "snli" in name:
            assert not section["build_info"]["images"]["storage"].startswith("/")


def test_configs_are_found_in_a_wheel_and_in_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "PACKAGE", tmp_path / "elip_plugin")
    for place in (tmp_path, tmp_path / "elip_plugin"):  # the package's own folder comes first
        (place / "lavis_configs" / "datasets").mkdir(parents=True)
        assert configs_root() == place / "lavis_configs"


def test_a_config_of_ours_is_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = Path("lavis_configs/projects/albef/openmoji.yaml")
    assert find_config(name) == ROOT / "projects/albef/openmoji.yaml"
    for other in (
        "other.yaml",
        "pyproject.toml",
        "lavis_configs/none.yaml",
    ):  # nothing else of ours
        assert find_config(Path(other)) == Path(other)
    name.parent.mkdir(parents=True)
    name.write_text("run: {}")
    assert find_config(name) == name  # the user's own file comes first
