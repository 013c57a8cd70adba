"""Train a small BLIP of transformers with its `Trainer` on questions about pictures, pruned or not.

    python -m examples.openmoji --out emoji
    python examples/finetune_blip.py --data emoji --elip none
    python examples/finetune_blip.py --data emoji

Each picture is four emojis on coloured ground, and the question is what colour is behind one of
them. `--elip` is all that differs between two runs: by default the question chooses, in training
and at test time; "none", a preset or another mapping may be given. The model starts from random
weights, so pruning sets in slowly (`warmup`); `--model FOLDER` goes on from a folder of
`save_pretrained` with a tokenizer.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image, ImageChops
from tokenizers import BertWordPieceTokenizer

import elip_plugin

COLOURS = {
    "red": (240, 80, 80),
    "green": (90, 200, 90),
    "blue": (90, 130, 250),
    "yellow": (250, 220, 80),
    "orange": (250, 160, 60),
    "purple": (180, 110, 220),
    "pink": (250, 160, 200),
    "grey": (170, 170, 170),
}
BY_QUESTION = {"preset": "fast", "reducer": "similarity", "eval_mode": "text", "warmup": 0.4}
QUESTION = "what colour is behind the {}?"
SIDE, NAMES = 64, 16  # pixels of a picture; emojis that occur
HALF = SIDE // 2


def small_blip(names: list[str]) -> tuple[Any, Any]:
    """Build a BLIP of 6 blocks and 64 patches, and its tokenizer."""
    words = BertWordPieceTokenizer()
    texts = [*map(QUESTION.format, names), *COLOURS]
    words.train_from_iterator(texts, min_frequency=1, show_progress=False)
    with tempfile.TemporaryDirectory() as folder:
        words.save_model(folder)
        tokenizer = transformers.BertTokenizerFast(str(Path(folder) / "vocab.txt"))
    size = {"hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 512}
    text = {**size, "num_hidden_layers": 2, "initializer_range": 0.1, "vocab_size": len(tokenizer)}
    text |= {"bos_token_id": tokenizer.cls_token_id, "pad_token_id": tokenizer.pad_token_id}
    text |= {"sep_token_id": tokenizer.sep_token_id, "eos_token_id": tokenizer.sep_token_id}
    # transformers' own initializer_range is for weights that are loaded.
    vision = {**size, "num_hidden_layers": 6, "image_size": SIDE, "patch_size": 8}
    vision["initializer_range"] = 0.02
    config = transformers.BlipConfig(text_config=text, vision_config=vision)
    return transformers.BlipForQuestionAnswering(config), tokenizer


class Questions(torch.utils.data.Dataset[dict[str, Any]]):
    """Pictures, questions and answers, each drawn by its number.

    Args:
        emojis: Pictures of one emoji by name.
        count: How many.
        seed: Decides which.
    """

    def __init__(self, emojis: dict[str, Image.Image], count: int, seed: int) -> None:
        self.emojis, self.count, self.seed = emojis, count, seed

    def __len__(self) -> int:
        """Count the questions."""
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Draw a picture, and ask about one of its emojis."""
        chance = random.Random(f"{self.seed} {index}")
        names, picture = chance.sample(list(self.emojis), 4), Image.new("RGB", (SIDE, SIDE))
        colours = [chance.choice(list(COLOURS)) for _ in names]
        for i, (name, colour) in enumerate(zip(names, colours)):
            ground = Image.new("RGB", (HALF, HALF), COLOURS[colour])
            drawn = ImageChops.darker(self.emojis[name], ground)
            picture.paste(drawn, (i % 2 * HALF, i // 2 * HALF))
        asked = chance.randrange(4)
        return {
            "picture": picture,
            "question": QUESTION.format(names[asked]),
            "answer": colours[asked],
        }


def read_emojis(data: Path) -> dict[str, Image.Image]:
    """Read some emojis of a folder of `python -m examples.openmoji`."""
    pairs = json.loads((data / "train.json").read_text())[:NAMES]
    pictures = [Image.open(data / pair["image"]).convert("RGB") for pair in pairs]
    return {pair["caption"]: p.resize((HALF, HALF)) for pair, p in zip(pairs, pictures)}


class Collator:
    """Turns questions into what the model's forward takes.

    Args:
        tokenizer: The model's.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.pixels = transformers.BlipImageProcessor(size={"height": SIDE, "width": SIDE})

    def question(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Prepare pictures and questions."""
        texts = self.tokenizer([r["question"] for r in rows], padding=True, return_tensors="pt")
        images = self.pixels([row["picture"] for row in rows], return_tensors="pt")
        names = ("input_ids", "attention_mask")
        return {**{name: texts[name] for name in names}, "pixel_values": images["pixel_values"]}

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Prepare pictures, questions and answers."""
        answers = self.tokenizer([r["answer"] for r in rows], padding=True, return_tensors="pt")
        ids, mask = answers["input_ids"], answers["attention_mask"]
        labels = ids.masked_fill(mask == 0, -100)
        given = {"decoder_input_ids": ids, "decoder_attention_mask": mask, "labels": labels}
        return {**self.question(rows), **given}


def right_answers(model: Any, questions: Questions, collator: Collator) -> float:
    """Compute the share of right answers, in percent."""
    model.eval()
    right = 0
    for first in range(0, len(questions), 100):
        rows = [questions[i] for i in range(first, min(first + 100, len(questions)))]
        batch = {k: v.to(model.device) for k, v in collator.question(rows).items()}
        ids = model.generate(**batch, max_new_tokens=4)
        answers = collator.tokenizer.batch_decode(ids, skip_special_tokens=True)
        right += sum(a == row["answer"] for a, row in zip(answers, rows))
    return 100 * right / len(questions)


def main() -> None:
    """Train, and answer questions about new pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="a folder of examples.openmoji")
    parser.add_argument("--model", default="", help="a local folder; by default a small new BLIP")
    parser.add_argument("--elip", default=json.dumps(BY_QUESTION), help="none, a preset, or JSON")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--questions", type=int, default=1000, help="new ones, at the end")
    given = parser.parse_args()

    transformers.set_seed(given.seed)
    emojis = read_emojis(given.data)
    if given.model:
        model = transformers.BlipForQuestionAnswering.from_pretrained(given.model)
        tokenizer = transformers.AutoTokenizer.from_pretrained(given.model)
    else:
        model, tokenizer = small_blip(list(emojis))
    callbacks = []
    if given.elip != "none":
        config = json.loads(given.elip) if given.elip.startswith("{") else given.elip
        print(elip_plugin.apply(model, config).plan.summary())
        callbacks.append(elip_plugin.TrainerCallback())  # for the schedule
    model.accepts_loss_kwargs = False  # BLIP of transformers 4.57 refuses what its Trainer adds
    collator = Collator(tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            max_steps=given.steps,
            per_device_train_batch_size=given.batch,
            learning_rate=given.lr,
            lr_scheduler_type="cosine",
            warmup_steps=given.steps // 10,
            remove_unused_columns=False,  # the collator makes the model's
            logging_steps=50,
            save_strategy="no",
            report_to=[],
            seed=given.seed,
        )
        train = Questions(emojis, given.steps * given.batch, seed=1 + given.seed)
        trainer = transformers.Trainer(
            model, arguments, train_dataset=train, data_collator=collator, callbacks=callbacks
        )
        trainer.train()
    share = right_answers(model, Questions(emojis, given.questions, seed=0), collator)
    print(f"right answers: {share:.1f}%")


if __name__ == "__main__":
    main()
