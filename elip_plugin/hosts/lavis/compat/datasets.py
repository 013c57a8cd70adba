"""`elip_pairs`: LAVIS' data sets of pairs, over lists of your own.

LAVIS' builders of such data sets download COCO and the like. This one reads JSON lists of
`{"image": path, "caption": text}`; the config has LAVIS' shape, relative paths start at the working
directory, and all faults are named at the start.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lavis.common.registry import registry
from lavis.datasets.builders.base_dataset_builder import BaseDatasetBuilder
from lavis.datasets.datasets.base_dataset import ConcatDataset
from lavis.datasets.datasets.image_text_pair_datasets import ImageTextPairDataset
from lavis.datasets.datasets.retrieval_datasets import RetrievalEvalDataset

from elip_plugin.errors import DataError, join_faults
from elip_plugin.hosts.lavis.compat.pairs import list_faults
from elip_plugin.hosts.lavis.compat.paths import configs_root

NAME = "elip_pairs"


class RetrievalTestDataset(RetrievalEvalDataset):
    """Images with one or several captions each."""

    annotation: list[dict[str, Any]]

    def _add_instance_ids(self, key: str = "instance_id") -> None:
        # LAVIS calls this where the annotation is just read, and would then take a lone string for
        # a list of captions of one letter.
        for row in self.annotation:
            if isinstance(row["caption"], str):
                row["caption"] = [row["caption"]]
        super()._add_instance_ids(key)


class PairsBuilder(BaseDatasetBuilder):
    """`elip_pairs`: pairs to train on, and retrieval splits to evaluate on."""

    DATASET_CONFIG_DICT = {"default": str(configs_root() / "datasets" / f"{NAME}.yaml")}  # noqa: RUF012

    def _download_data(self) -> None:
        """Check the lists and that images are there; LAVIS downloads here, in one process."""
        faults = [
            fault
            for split, path, folder in self.lists()
            for fault in list_faults(path, folder, several=split != "train")
        ]
        if faults:
            raise DataError(join_faults(f"datasets.{NAME}", faults))

    def build(self) -> dict[str, Any]:
        """Build the data set of each split."""
        self.build_processors()
        parts: dict[str, list[Any]] = {}
        for split, path, folder in self.lists():
            kind = "train" if split == "train" else "eval"
            made_by = ImageTextPairDataset if split == "train" else RetrievalTestDataset
            processors = self.vis_processors[kind], self.text_processors[kind]
            made = made_by(*processors, vis_root=str(folder), ann_paths=[str(path)])
            parts.setdefault(split, []).append(made)
        return {
            split: ConcatDataset(made) if split == "train" else made[0]
            for split, made in parts.items()
        }

    def lists(self) -> list[tuple[str, Path, Path]]:
        """Return the lists: each with its split, and the folder of its images."""
        info = self.config.get("build_info") or {}
        folder = (info.get("images") or {}).get("storage")
        found = []
        for split, entry in (info.get("annotations") or {}).items():
            storage = (entry or {}).get("storage") or ()
            files = [storage] if isinstance(storage, str) else list(storage)
            one = split in ("val", "test") and len(files) == 1
            if not (one or (split == "train" and files)):
                raise DataError(
                    f"datasets.{NAME}: build_info.annotations.{split} must be {{storage: FILE}}, "
                    f"of splits train (which may have a list of files), val and test; got {entry!r}"
                )
            for path in (Path(file).expanduser().absolute() for file in files):
                images = Path(folder).expanduser().absolute() if folder else path.parent
                found.append((split, path, images))
        if not found:
            raise DataError(
                f"datasets.{NAME}: no annotation file is given: set "
                "build_info.annotations.train.storage to a JSON list"
            )
        return found


def register_builder() -> None:
    """Register the builder with LAVIS; safe to repeat."""
    if registry.get_builder_class(NAME) is not PairsBuilder:
        registry.register_builder(NAME)(PairsBuilder)
