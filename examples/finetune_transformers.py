"""Train a CLIP of transformers with its `Trainer`, pruned or not, on pictures and their names.

    python -m examples.openmoji --out emoji
    python examples/finetune_transformers.py --data emoji --elip none --out none.json
    python examples/finetune_transformers.py --data emoji --elip half --out half.json

`--elip` is all that differs between two runs: a preset, "none", or a mapping such as
'{"preset": "half", "warmup": 0.2, "final_unpruned": 0.2}'. The CLIP is small and starts from random
weights; `--model FOLDER` goes on from any folder of `save_pretrained` with a tokenizer and an image
processor in it.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image

import elip_plugin

SIZE = {"hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 512}
LENGTH = 24  # tokens of a name


class Clock(transformers.TrainerCallback):
    """Takes the time of each whole training step, and what of it this process ran."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []

    def on_step_begin(self, *args: Any, **given: Any) -> None:
        """Start the clock."""
        self.started, self.cpu_started = time.perf_counter(), time.process_time()

    def on_step_end(self, *args: Any, **given: Any) -> None:
        """Stop the clock, after what a GPU still has to do."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self.started)
        self.cpu_seconds.append(time.process_time() - self.cpu_started)


def small_clip(vocab: Path) -> tuple[Any, Any, Any]:
    """Build a CLIP of 12 blocks and 64 patches, and what prepares texts and pictures for it."""
    words = {word: i for i, word in enumerate(vocab.read_text().splitlines())}
    tokenizer = transformers.BertTokenizerFast(str(vocab))
    special = {"bos_token_id": words["[CLS]"], "eos_token_id": words["[SEP]"]}
    text = {**SIZE, "num_hidden_layers": 4, "vocab_size": len(words), **special}
    text |= {"max_position_embeddings": LENGTH, "pad_token_id": words["[PAD]"]}
    vision = {**SIZE, "num_hidden_layers": 12, "image_size": 64, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=128)
    pixels = transformers.CLIPImageProcessor(size={"shortest_edge": 64}, crop_size=64)
    return transformers.CLIPModel(config), tokenizer, pixels


def load(folder: str) -> tuple[Any, Any, Any]:
    """Load a model, its tokenizer and its image processor from a local folder."""
    local = {"local_files_only": True}
    return (
        transformers.AutoModel.from_pretrained(folder, **local),
        transformers.AutoTokenizer.from_pretrained(folder, **local),
        transformers.AutoImageProcessor.from_pretrained(folder, **local),
    )


def read_pairs(data: Path, split: str, tokenizer: Any, pixels: Any) -> list[dict[str, Any]]:
    """Read the pictures and names of a split as rows for the Trainer."""
    pairs = json.loads((data / f"{split}.json").read_text())
    pictures = [Image.open(data / pair["image"]).convert("RGB") for pair in pairs]
    options = {"padding": "max_length", "truncation": True, "max_length": LENGTH}
    texts = tokenizer([pair["caption"] for pair in pairs], return_tensors="pt", **options)
    images = pixels(pictures, return_tensors="pt")["pixel_values"]
    columns = {"input_ids": texts["input_ids"], "attention_mask": texts["attention_mask"]}
    columns["pixel_values"] = images
    return [{name: column[i] for name, column in columns.items()} for i in range(len(pairs))]


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack rows; `return_loss` makes the model compute its contrastive loss."""
    return {**{name: torch.stack([r[name] for r in rows]) for name in rows[0]}, "return_loss": True}


@torch.no_grad()
def recall(model: Any, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Compute the recall of the right partner among all, in percent, with all tokens."""
    model.eval()
    batches = [collate(rows[i : i + 100]) for i in range(0, len(rows), 100)]
    made = [model(**{k: v for k, v in b.items() if k != "return_loss"}) for b in batches]
    images = torch.cat([out.image_embeds for out in made])
    texts = torch.cat([out.text_embeds for out in made])
    found = {}
    for name, scores in (("image_to_text", images @ texts.T), ("text_to_image", texts @ images.T)):
        rank = (scores > scores.diag()[:, None]).sum(dim=1)
        for k in (1, 5):
            found[f"{name}_R@{k}"] = 100 * (rank < k).float().mean().item()
    return found


def main() -> None:
    """Train, measure and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="a folder of examples.openmoji")
    parser.add_argument("--model", default="", help="a local folder; by default a small new CLIP")
    parser.add_argument("--elip", default="half", help="none, a preset, or a mapping in JSON")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--steps", type=int, default=-1, help="instead of epochs")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    given = parser.parse_args()

    transformers.set_seed(given.seed)
    made = load(given.model) if given.model else small_clip(given.data / "vocab.txt")
    model, *processors = made
    train, held_out = (read_pairs(given.data, name, *processors) for name in ("train", "held_out"))

    clock = Clock()
    callbacks: list[Any] = [clock]
    tokens = "all"
    if given.elip != "none":
        config = json.loads(given.elip) if given.elip.startswith("{") else given.elip
        handle = elip_plugin.apply(model, config)
        callbacks.append(elip_plugin.TrainerCallback())  # for a schedule, if there is one
        tokens = handle.plan.summary()
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            num_train_epochs=given.epochs,
            max_steps=given.steps,
            per_device_train_batch_size=given.batch,
            learning_rate=given.lr,
            lr_scheduler_type="cosine",
            warmup_steps=20,
            dataloader_drop_last=True,
            logging_steps=10,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            seed=given.seed,
        )
        trainer = transformers.Trainer(
            model, arguments, train_dataset=train, data_collator=collate, callbacks=callbacks
        )
        trainer.train()
    on_gpu = torch.cuda.is_available()
    peak = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else 0.0
    # The process' own peak, in KiB on Linux: data and libraries are in it.
    peak = peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    device = trainer.args.device
    rows = [{name: value.to(device) for name, value in row.items()} for row in held_out]
    report = {
        "elip": given.elip,
        "tokens": tokens,
        "seed": given.seed,
        "device": torch.cuda.get_device_name() if on_gpu else f"{torch.get_num_threads()} threads",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "steps": trainer.state.global_step,
        "seconds_per_step": statistics.median(clock.seconds[1:] or clock.seconds),
        "cpu_seconds_per_step": statistics.median(clock.cpu_seconds[1:] or clock.cpu_seconds),
        "peak_MiB": peak,
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        **recall(model, rows),
    }
    for name, value in report.items():
        print(f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}")
    if given.out:
        given.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
