"""The same questions through transformers: its own BLIP, trained by its own `Trainer`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset

import elip_plugin
from benchmarks.vqa.recipe import HEADS, VqaRecipe
from benchmarks.vqa.scenes import Questions, batches

WORDS = 4
"""Tokens of an answer at most."""


class Blip(nn.Module):
    """transformers' model with the methods by which the study runs LAVIS'.

    Args:
        inner: A `BlipForQuestionAnswering`.
        tokenizer: Its tokenizer.
    """

    def __init__(self, inner: Any, tokenizer: Any) -> None:
        super().__init__()
        self.inner, self.tokenizer = inner, tokenizer

    def forward(self, samples: dict[str, Any]) -> dict[str, Tensor]:
        """Compute the loss of LAVIS' samples."""
        return {"loss": self.inner(**self.columns(samples)).loss}

    def columns(self, samples: dict[str, Any]) -> dict[str, Tensor]:
        """Turn LAVIS' samples into what transformers' forward takes."""
        answers = self.tokenizer(samples["answer"], padding=True, return_tensors="pt")
        ids, mask = answers["input_ids"], answers["attention_mask"]
        return {
            **self.question(samples),
            "decoder_input_ids": ids,
            "decoder_attention_mask": mask,
            "labels": ids.masked_fill(mask == 0, -100),
        }

    def question(self, samples: dict[str, Any]) -> dict[str, Tensor]:
        """Turn LAVIS' samples into what transformers' `generate` takes."""
        tokens = self.tokenizer(samples["text_input"], padding=True, return_tensors="pt")
        names = ("input_ids", "attention_mask")
        return {"pixel_values": samples["image"], **{name: tokens[name] for name in names}}

    def predict_answers(self, samples: dict[str, Any], **ranking: Any) -> list[str]:
        """Generate an answer to each question; LAVIS' ranks a list of answers."""
        ids = self.inner.generate(**self.question(samples), max_new_tokens=WORDS)
        answers: list[str] = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return answers


def build(recipe: VqaRecipe, vocabulary: Path, seed: int) -> Blip:
    """Build transformers' model in the sizes of LAVIS', unpruned.

    Args:
        recipe: Its sizes.
        vocabulary: The tokenizer's words.
        seed: Decides the initial weights.

    Returns:
        The model.
    """
    import transformers

    tokenizer = transformers.BertTokenizerFast(str(vocabulary))
    tokens = {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id}
    tokens |= {"sep_token_id": tokenizer.sep_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = transformers.BlipConfig(
        text_config={**recipe.bert, **tokens, "vocab_size": len(tokenizer)},
        vision_config={
            "hidden_size": recipe.width,
            "intermediate_size": 4 * recipe.width,
            "num_hidden_layers": recipe.depth,
            "num_attention_heads": HEADS["vision"],
            "image_size": recipe.size,
            "patch_size": recipe.patch,
            # transformers' own 1e-10 is for weights that are loaded.
            "initializer_range": 0.02,
        },
    )
    torch.manual_seed(seed)
    return Blip(transformers.BlipForQuestionAnswering(config), tokenizer)


class _Stream(IterableDataset[dict[str, Any]]):
    """The questions of a training in the order that the seed decides."""

    def __init__(self, *given: Any) -> None:
        self.given = given

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Iterate over questions one by one, as a Trainer takes them."""
        for samples in batches(*self.given):
            rows = (samples[name] for name in ("image", "text_input", "answer"))
            for image, question, answer in zip(*rows):
                yield {"image": image, "text_input": question, "answer": answer}


def fit(
    model: Blip,
    recipe: VqaRecipe,
    steps: int,
    questions: Questions,
    seed: int,
    handle: elip_plugin.Handle | None,
    after_step: Callable[[int, float], None],
) -> None:
    """Train by transformers' Trainer.

    Args:
        model: From `build`.
        recipe: How to train.
        steps: Optimizer steps.
        questions: What to train on.
        seed: Decides the order.
        handle: What prunes the model; None for nothing.
        after_step: Called with each step, from 0, and its loss.
    """
    import transformers

    class Steps(transformers.TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, *_: Any, logs: Any, **given: Any) -> None:
            if "loss" in logs:
                after_step(state.global_step - 1, float(logs["loss"]))

    def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        samples: dict[str, Any] = {name: [row[name] for row in rows] for name in rows[0]}
        return model.columns({**samples, "image": torch.stack(samples["image"])})

    model.inner.accepts_loss_kwargs = False  # transformers 4.57's BLIP refuses its Trainer's
    optimizer = recipe.optimizer(model.parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: recipe.rate(step, steps) / recipe.learning_rate
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=recipe.batch,
            max_grad_norm=recipe.clip,
            seed=seed,
            use_cpu=True,
            remove_unused_columns=False,  # the collator makes them
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        trainer = transformers.Trainer(
            model.inner,
            arguments,
            train_dataset=_Stream(questions, recipe.batch, steps, seed),
            data_collator=collate,
            optimizers=(optimizer, schedule),
            callbacks=[Steps(), *([] if handle is None else [elip_plugin.TrainerCallback()])],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
