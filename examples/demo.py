"""Train a small CLIP twice with OpenCLIP's own, unmodified command: unpruned, and pruned by ELIP.

Run it with `make demo`. Both trainings have the same number of counted operations, so the pruned
one sees the pairs more often. It reports the retrieval of both on pairs that neither has seen, and
draws their scores over time and what the pruned one makes of the patches. An interrupted demo goes
on after the last epoch that was finished.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
os.environ["ELIP_MODEL_CONFIGS"] = str(HERE / "models")

BASE = "ViT-emoji"
PRUNED = f"elip-half-{BASE}"
SHARE = 0.6
"""Operations of the average training step of `PRUNED`, of those of `BASE`, rounded up."""

BATCH = 128
SHOWN = 3
"""Held-out pictures to draw."""


@dataclass(frozen=True)
class Training:
    """One training by OpenCLIP's command.

    Attributes:
        model: OpenCLIP's name of the model.
        epochs: How often it sees the pairs.
        folder: Where OpenCLIP writes the log, the checkpoints and the scores.
    """

    model: str
    epochs: int
    folder: Path

    @property
    def scores(self) -> list[dict[str, float]]:
        """OpenCLIP's own scores on the held-out pairs, one per finished epoch."""
        path = self.folder / "checkpoints" / "results.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        by_epoch = {row["epoch"]: row for row in map(json.loads, lines)}  # an epoch may be repeated
        return [by_epoch[epoch] for epoch in sorted(by_epoch) if epoch > 0]

    @property
    def checkpoint(self) -> Path:
        """The model after the last epoch that was finished."""
        return self.folder / "checkpoints" / "epoch_latest.pt"

    @property
    def finished(self) -> bool:
        """Whether all epochs are scored, and the checkpoint, which is written after that, too."""
        results = self.folder / "checkpoints" / "results.jsonl"
        return (
            len(self.scores) >= self.epochs
            and self.checkpoint.exists()
            and self.checkpoint.stat().st_mtime_ns >= results.stat().st_mtime_ns
        )

    @property
    def minutes(self) -> list[float]:
        """Minutes of training up to the end of each epoch, without the scoring."""
        started, passed, total = None, {}, 0.0
        for time, text in log_lines(self.folder / "out.log"):
            if found := re.match(r"Start epoch (\d+)", text):
                started = int(found[1]), time
            elif "(100%)" in text and "Train Epoch" in text and started is not None:
                passed[started[0]] = (time - started[1]).total_seconds() / 60
        return [total := total + passed[epoch] for epoch in sorted(passed)]

    def command(self, data: Any) -> list[str]:
        """Return the command, which is OpenCLIP's own."""
        (held_out,) = (data.out / "held_out").glob("*.tar")
        return [
            sys.executable, "-m", "open_clip_train.main", "--model", self.model,
            "--dataset-type", "webdataset",
            "--train-data", data.train_pattern, "--train-num-samples", str(data.train),
            "--val-data", str(held_out), "--val-num-samples", str(data.held_out),
            "--batch-size", str(BATCH), "--epochs", str(self.epochs), "--lr", "1e-3",
            "--warmup", "20", "--grad-clip-norm", "1", "--workers", "1",
            "--precision", "fp32", "--log-every-n-steps", "3",
            "--save-most-recent", "--resume", "latest",
            "--logs", str(self.folder.parent), "--name", self.folder.name,
        ]  # fmt: skip

    def run(self, data: Any) -> None:
        """Run the command, with a bar for its progress; go on where an earlier run was stopped."""
        from rich.progress import Progress

        if self.finished:
            print(f"{self.model}: trained before, in {self.folder} (remove it to begin anew)")
            return
        args = self.command(data)
        print("$ " + " ".join(["python", *args[1:]]), flush=True)
        log = ""
        with (
            Progress(transient=True) as progress,
            subprocess.Popen(
                args, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            ) as process,
        ):
            bar = progress.add_task(self.model, total=float(self.epochs))
            assert process.stdout is not None
            for line in process.stdout:
                log += line
                if found := re.search(r"Train Epoch: (\d+) \[.*\((\d+)%\)", line):
                    progress.update(bar, completed=int(found[1]) + int(found[2]) / 100)
                elif "ELIP prunes" in line or "resuming checkpoint" in line:
                    progress.console.print("  " + line.split("| INFO | ")[-1].rstrip())
        if process.returncode:
            sys.exit(f"the training command failed:\n{log[-3000:]}")


def log_lines(path: Path) -> Iterator[tuple[datetime, str]]:
    """Read the times and texts of OpenCLIP's log."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        if found := re.match(r"(\d{4}-\d\d-\d\d,\d\d:\d\d:\d\d) \| INFO \| (.*)", line):
            yield datetime.strptime(found[1], "%Y-%m-%d,%H:%M:%S"), found[2]


def both_ways(score: dict[str, float], rank: int) -> float:
    """Return the mean recall at a rank, of image to text and text to image."""
    return (score[f"image_to_text_R@{rank}"] + score[f"text_to_image_R@{rank}"]) / 2


def report(trainings: list[Training], chart: Path) -> None:
    """Print the scores of both trainings, and draw them over time."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Retrieval on 500 pairs that were held out (chance: R@1 0.2%, R@5 1.0%)")
    for column in ("model", "epochs", "training", "R@1", "R@5", "loss"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for training in trainings:
        last = training.scores[-1]
        table.add_row(
            training.model,
            str(training.epochs),
            f"{training.minutes[-1]:.1f} min",
            f"{both_ways(last, 1):.1%}",
            f"{both_ways(last, 5):.1%}",
            f"{last['clip_val_loss']:.2f}",
        )
    Console(width=90).print(table)
    print(
        "Recall is the mean of both directions, with all tokens. One training each: R@1 varies by "
        "some points\nfrom seed to seed; research/quality.md has the comparison over many."
    )
    draw(trainings, chart)


def draw(trainings: list[Training], chart: Path) -> None:
    """Draw loss and recall on the held-out pairs over the minutes of training."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for training in trainings:
        minutes, scores = training.minutes, training.scores
        losses = [score["clip_val_loss"] for score in scores]
        panels[0].plot(minutes, losses, marker="o", label=training.model)
        recalls = [100 * both_ways(score, 5) for score in scores]
        panels[1].plot(minutes, recalls, marker="o", label=training.model)
    for axes, label in zip(panels, ("loss on held-out pairs", "R@5 on held-out pairs, %")):
        axes.set_xlabel("minutes of training")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    panels[0].legend()
    figure.savefig(chart, dpi=120)
    pyplot.close(figure)


def show(data: Any, training: Training, page: Path) -> None:
    """Draw what the trained model makes of the patches of held-out pictures."""
    held_out = json.loads((data.out / "held_out.json").read_text())
    pictures = [pair["image"] for pair in held_out[:: len(held_out) // SHOWN][:SHOWN]]
    args = ["--model", training.model, "-o", str(page)]
    args += ["--checkpoint", str(training.checkpoint)]
    for picture in pictures:
        args += ["--image", str(data.out / picture)]
    subprocess.run([sys.executable, "-m", "elip_plugin", "show", *args], check=True)


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"))
    parser.add_argument("--epochs", type=int, default=4, help="of the unpruned training")
    parser.add_argument("--pairs", type=int, help=argparse.SUPPRESS)  # per epoch, for a short test
    args = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[1]))  # for the example that makes the data
    from examples.openmoji import write_openmoji

    data = write_openmoji(args.out / "openmoji", overwrite=True)
    print(f"{data.pairs} pairs in {data.out}. {data.attribution}", flush=True)
    data = replace(data, train=args.pairs or data.train)
    logs = args.out / "logs"
    trainings = [
        Training(BASE, args.epochs, logs / f"unpruned-{args.epochs}"),
        Training(PRUNED, int(args.epochs / SHARE), logs / f"pruned-{args.epochs}"),
    ]
    try:
        for training in trainings:
            training.run(data)
    except KeyboardInterrupt:
        sys.exit("\nstopped; the same command goes on after the last finished epoch")
    report(trainings, args.out / "curves.png")
    show(data, trainings[-1], args.out / "look.html")
    print(f"\nScores over time: {args.out / 'curves.png'}")
    print(f"Which patches are averaged: {args.out / 'look.html'} (open it in a browser)")
    print(f"Logs and checkpoints: {logs}")


if __name__ == "__main__":
    main()
