"""Builders of local data sets: `elip_pairs` and `elip_retrieval`.

Both read JSON lists of `{"image": path, "caption": text}`. The config has LAVIS' shape, but nothing
is downloaded, relative paths start at the working directory, and all faults are named at the start.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lavis.common.registry import registry
from lavis.datasets.builders.base_dataset_builder import BaseDatasetBuilder
from lavis.datasets.datasets.image_text_pair_datasets import ImageTextPairDataset
from lavis.datasets.datasets.retrieval_datasets import RetrievalDataset, RetrievalEvalDataset

from elip_plugin.data.pairs import decode_fault, list_faults, read_list, strict_decoding
from elip_plugin.errors import DataError, join_faults
from elip_plugin.hosts.lavis.compat.paths import configs_root
from elip_plugin.hosts.lavis.compat.section import read_section


class UndecodableError(DataError):
    """An image that cannot be decoded.

    A data loader's worker sends the message at the end of a traceback, which is cut off here.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition(f"{UndecodableError.__name__}: ")[2].strip())


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

    def __getitem__(self, index: int) -> dict[str, Any]:
        with strict_decoding():
            try:
                return super().__getitem__(index)  # type: ignore[misc]
            except Exception as error:
                path = self.annotation[index]["image"]
                fault = decode_fault(path)
                if fault is None:  # not the image's, or passing: the error speaks for itself
                    raise
                fault, lists = " ".join(fault.split()), " or ".join(map(str, self.elip_lists))
                raise UndecodableError(
                    f"{path} cannot be decoded ({fault}): replace the file, or take its entry out "
                    f"of {lists}; check_images: full finds all such files before training"
                ) from error


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
        """Check config, lists and images; LAVIS downloads here, in the main process only."""
        section = read_section(self.config)
        faults = list(section.faults)
        for split, paths in section.lists.items():
            for path in paths:
                root = section.images or path.parent
                faults += list_faults(
                    path, root, several=split != "train", images=section.check_images
                )
        if faults:
            raise DataError(join_faults(f"datasets.{self.elip_name}", faults))

    def build(self) -> dict[str, Any]:
        """Build the data set of each split."""
        self.build_processors()
        section = read_section(self.config)
        datasets = {}
        for split, paths in section.lists.items():
            kind = "train" if split == "train" else "eval"
            made_by = self.train_dataset_cls if split == "train" else self.eval_dataset_cls
            datasets[split] = made_by(
                vis_processor=self.vis_processors[kind],
                text_processor=self.text_processors[kind],
                vis_root=section.images,
                ann_paths=paths,
            )
        return datasets


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
