"""The config section of one of our data sets, read and checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lavis.common.registry import registry
from omegaconf import OmegaConf

from elip_plugin.data.pairs import FULL
from elip_plugin.errors import nearest

SPLITS = ("train", "val", "test")
_FREE: dict[str, Any] = {}  # a processor's own keys, or a plain value
_PROCESSOR = {"train": _FREE, "eval": _FREE}
_KEYS: dict[str, Any] = {
    "type": _FREE,
    "data_type": _FREE,
    "check_images": _FREE,
    "build_info": {
        "annotations": {split: {"storage": _FREE} for split in SPLITS},
        "images": {"storage": _FREE},
    },
    "vis_processor": _PROCESSOR,
    "text_processor": _PROCESSOR,
}


@dataclass(frozen=True)
class Section:
    """The values of a section, without those that have faults."""

    lists: dict[str, list[Path]]  # the annotation files of each split
    images: Path | None  # their folder; None for that of each annotation file
    check_images: bool | str  # before training, headers alone; "full": all
    faults: tuple[str, ...]  # a sentence each


def read_section(config: Any) -> Section:
    """Read LAVIS' config of one data set, with paths relative to the working directory."""
    given: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    faults = _key_faults(given, _KEYS, "")
    info = _mapping(given.get("build_info"))
    lists = _lists(_mapping(info.get("annotations")), faults)
    folder = _mapping(info.get("images")).get("storage")
    if folder is not None and not isinstance(folder, str):
        faults.append(f"build_info.images.storage must be one folder, got {folder!r}")
        folder = None
    check = given.get("check_images", True)
    if check not in (True, False, FULL):
        faults.append(f"check_images must be true, false or full, got {check!r}")
    if given.get("data_type") != "images":
        faults.append(f"data_type must be images, got {given.get('data_type')!r}")
    for group in ("vis_processor", "text_processor"):
        for kind, processor in _mapping(given.get(group)).items():
            name = _mapping(processor).get("name")
            if kind in _PROCESSOR and registry.get_processor_class(name) is None:
                faults.append(f"{group}.{kind}.name: LAVIS has no processor {name!r}")
    return Section(lists, _absolute(folder) if folder else None, check, tuple(faults))


def _lists(annotations: dict[str, Any], faults: list[str]) -> dict[str, list[Path]]:
    """Return the files of each split; add what is wrong with them to the faults."""
    lists = {}
    for split in SPLITS:
        if split not in annotations:
            continue
        files = _mapping(annotations[split]).get("storage")
        files = [files] if isinstance(files, str) else files
        if files and isinstance(files, list) and all(isinstance(file, str) for file in files):
            lists[split] = [_absolute(file) for file in files]
        else:
            where = f"build_info.annotations.{split}.storage"
            faults.append(f"{where} must be a JSON file or a list of them, got {files!r}")
    if not annotations:
        faults.append(
            "no annotation file is given: set build_info.annotations.train.storage to a JSON list"
        )
    return lists


def _key_faults(given: dict[str, Any], keys: dict[str, Any], where: str) -> list[str]:
    faults = []
    for key, value in given.items():
        if key not in keys:
            faults.append(f"{where}{key} is not known: {nearest(key, keys)}")
        elif keys[key] and isinstance(value, dict):
            faults += _key_faults(value, keys[key], f"{where}{key}.")
        elif keys[key] and value is not None:
            faults.append(f"{where}{key} must hold {', '.join(keys[key])}, got {value!r}")
    return faults


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _absolute(path: str) -> Path:
    return Path(path).expanduser().absolute()
