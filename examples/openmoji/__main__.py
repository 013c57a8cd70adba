"""`python -m examples.openmoji --out FOLDER`, from the repository's root."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from elip_plugin import ElipError
from examples.openmoji.writing import write_openmoji


def main() -> None:
    """Write the data set, and print how the hosts read it."""
    parser = argparse.ArgumentParser(description="Write pairs of an emoji and its English name.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to; new or empty")
    parser.add_argument("--size", type=int, default=64, help="pixels of a side")
    parser.add_argument("--held-out", type=int, default=500, help="pairs kept out of the training")
    parser.add_argument("--seed", type=int, default=0, help="seed of the split")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier run's files")
    try:
        made = write_openmoji(**vars(parser.parse_args()))
    except ElipError as error:
        sys.exit(f"openmoji: {error}")
    print(
        f"{made.pairs} pairs in {made.out}: {made.train} train, {made.held_out} held out\n"
        f"{made.dropped_captions} dropped for a repeated caption; "
        f"{made.shared_pictures} kept although they look exactly like another\n"
        f"OpenCLIP: --dataset-type webdataset --train-data '{made.train_pattern}' "
        f"--train-num-samples {made.train}\n"
        f"LAVIS: {made.out / 'train.json'}, {made.out / 'held_out.json'}; "
        f"tokenizer: {made.out / 'vocab.txt'}\n"
        f"CLIP_benchmark: clip_benchmark eval --dataset wds/openmoji --dataset_root '{made.out}' "
        "--task zeroshot_retrieval --model MODEL --pretrained CHECKPOINT\n"
        f"{made.attribution}"
    )


if __name__ == "__main__":
    main()
