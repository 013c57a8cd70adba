"""`elip_pairs` and `elip_retrieval`: LAVIS' data sets of pairs, over lists of your own.

LAVIS' builders of such data sets download COCO and the like. These read JSON lists of
`{"image": path, "caption": text}`; the config has LAVIS' shape, relative paths start at the working
directory, and all faults are named at the start.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lavis.common.registry import registry
from lavis.datasets.builders.base_dataset_builder import BaseDatasetBuilder
from lavis.datasets.datasets.image_text_pair_datasets import ImageTextPairDataset
from lavis.datasets.datasets.retrieval_datasets import RetrievalDataset, RetrievalEvalDataset

from elip_plugin.errors import DataError, join_faults
from elip_plugin.hosts.lavis.compat.pairs import list_faults, read_list
from elip_plugin.hosts.lavis.compat.paths import configs_root

SPLITS = ("train", "val", "test")


class _Local:
    """Reads the lists itself: image paths may be relative to the folder of their own list."""

    annotation: list[dict[str, Any]]

    def __init__(
        self, vis_processor: Any, text_processor: Any, vis_root: Path | None, ann_paths: list[Path]
    ) -> None:
        self.elip_lists, self.elip_root = ann_paths, vis_root
        super().__init__(vis_processor, text_processor, "", [])  # type: ignore[call-arg]

    def _add_instance_ids(self, key: str = "instance_id") -> None:
        # LAVIS calls this in the middle of __init__, where the annotation is just read.
        for path in self.elip_lists:
            root = self.elip_root or path.parent
            for row in read_list(path):
                self.annotation.append(self._entry({**row, "image": str(root / row["image"])}))
        super()._add_instance_ids(key)  # type: ignore[misc]

    def _entry(self, row: dict[str, Any]) -> dict[str, Any]:
        return row


class PairsDataset(_Local, ImageTextPairDataset):
    """Training samples with `image` and `text_input`."""


class RetrievalTrainDataset(_Local, RetrievalDataset):
    """Training samples that also have `image_id` and `instance_id`."""

    def _entry(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"image_id": row["image"], **row}


class RetrievalTestDataset(_Local, RetrievalEvalDataset):
    """Images with one or several captions each."""

    def _entry(self, row: dict[str, Any]) -> dict[str, Any]:
        # LAVIS would take a lone string for a list of captions of one letter.
        text = row["caption"]
        return {**row, "caption": [text] if isinstance(text, str) else text}


class _LocalBuilder(BaseDatasetBuilder):
    eval_dataset_cls = RetrievalTestDataset
    elip_name: str

    def _download_data(self) -> None:
        """Check the lists and that images are there; LAVIS downloads here, in one process."""
        root, lists = self.places()
        faults = [
            fault
            for split, paths in lists.items()
            for path in paths
            for fault in list_faults(path, root or path.parent, several=split != "train")
        ]
        if not lists:
            faults = [
                "no annotation file is given: set build_info.annotations.train.storage to a JSON "
                "list"
            ]
        if faults:
            raise DataError(join_faults(f"datasets.{self.elip_name}", faults))

    def build(self) -> dict[str, Any]:
        """Build the data set of each split."""
        self.build_processors()
        root, lists = self.places()
        datasets = {}
        for split, paths in lists.items():
            kind = "train" if split == "train" else "eval"
            made_by = self.train_dataset_cls if split == "train" else self.eval_dataset_cls
            datasets[split] = made_by(
                vis_processor=self.vis_processors[kind],
                text_processor=self.text_processors[kind],
                vis_root=root,
                ann_paths=paths,
            )
        return datasets

    def places(self) -> tuple[Path | None, dict[str, list[Path]]]:
        """Return the folder of the images, None for that of each list, and the splits' lists."""
        info = self.config.get("build_info") or {}
        folder = (info.get("images") or {}).get("storage")
        lists = {}
        for split, entry in (info.get("annotations") or {}).items():
            storage = (entry or {}).get("storage")
            if split not in SPLITS or not storage:
                raise DataError(
                    f"datasets.{self.elip_name}: build_info.annotations.{split} must be "
                    f"{{storage: FILE or list of files}}, of splits {list(SPLITS)}, got {entry!r}"
                )
            files = [storage] if isinstance(storage, str) else storage
            lists[split] = [Path(file).expanduser().absolute() for file in files]
        return Path(folder).expanduser().absolute() if folder else None, lists


class PairsBuilder(_LocalBuilder):
    """`elip_pairs`: pairs to pre-train on."""

    elip_name = "elip_pairs"
    train_dataset_cls = PairsDataset
    DATASET_CONFIG_DICT = {"default": str(configs_root() / "datasets" / "elip_pairs.yaml")}  # noqa: RUF012


class RetrievalBuilder(_LocalBuilder):
    """`elip_retrieval`: pairs to fine-tune retrieval on, in which images may repeat."""

    elip_name = "elip_retrieval"
    train_dataset_cls = RetrievalTrainDataset
    DATASET_CONFIG_DICT = {"default": str(configs_root() / "datasets" / "elip_retrieval.yaml")}  # noqa: RUF012


def register_builders() -> None:
    """Register the builders with LAVIS; those that are registered already stay."""
    for builder in (PairsBuilder, RetrievalBuilder):
        if registry.get_builder_class(builder.elip_name) is not builder:
            registry.register_builder(builder.elip_name)(builder)
