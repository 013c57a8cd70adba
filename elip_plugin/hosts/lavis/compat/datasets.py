"""`elip_pairs`: LAVIS' data sets of pairs, over lists of your own.

LAVIS' builders of such data sets download COCO and the like. This one reads JSON lists of
`{"image": path, "caption": text}`; the config has LAVIS' shape, and relative paths start at the
working directory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lavis.datasets.builders.base_dataset_builder import BaseDatasetBuilder
from lavis.datasets.datasets.image_text_pair_datasets import ImageTextPairDataset
from lavis.datasets.datasets.retrieval_datasets import RetrievalEvalDataset

from elip_plugin.errors import DataError, shown
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
        """Do nothing; LAVIS downloads here."""

    def build(self) -> dict[str, Any]:
        """Build the data set of each split, all of whose images are there."""
        self.build_processors()
        info = self.config.get("build_info") or {}
        images = (info.get("images") or {}).get("storage")
        made = {}
        for split, entry in (info.get("annotations") or {}).items():
            files = (entry or {}).get("storage") or []
            paths = [Path(file) for file in ([files] if isinstance(files, str) else files)]
            if not paths:
                raise DataError(f"datasets.{NAME}: build_info.annotations.{split} has no storage")
            made[split] = self._read(split, paths, Path(images or paths[0].parent))
        return made

    def _read(self, split: str, paths: list[Path], folder: Path) -> Any:
        kind = "train" if split == "train" else "eval"
        made_by = ImageTextPairDataset if split == "train" else RetrievalTestDataset
        folder, *paths = (path.expanduser().absolute() for path in (folder, *paths))
        try:
            processors = self.vis_processors[kind], self.text_processors[kind]
            made = made_by(*processors, vis_root=str(folder), ann_paths=list(map(str, paths)))
            pairs = [(row["image"], row["caption"]) for row in made.annotation]
            missing = sorted({name for name, _ in pairs if not (folder / name).is_file()})
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise DataError(
                f"datasets.{NAME}: {', '.join(map(str, paths))} must be JSON lists, such as "
                f'[{{"image": ..., "caption": ...}}] ({type(error).__name__}: {error})'
            ) from error
        if missing:
            raise DataError(
                f"datasets.{NAME}: of {len(pairs)} pairs to {split} with, {len(missing)} images "
                f"are not in {folder}: {shown(missing)}"
            )
        return made
