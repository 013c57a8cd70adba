"""Fine-tuning with pruning: weights that exist learn to match photographs and captions.

The learning rate is constant after its rise, and what is scored is a moving average of the weights
(0.95), so that one training gives the score after any number of steps: as many as unpruned
(*steps*), and as many as cost what unpruned training costs (*operations* of the image tower's
blocks).

Asked before the first run, of seeds 0 to 4 at 112 px and 0 and 1 at 224 px, by R@1 of captions to
photographs with all tokens at test, paired by seed, 95% intervals:

1. Is `ward 0.7` at equal steps at most 0.5 points below unpruned training?
2. Is `ward 0.7` at equal operations above it?
3. The same of `half`, `third`, `level` and a random half.
4. Which of them are above, where the test is pruned as `embed` prunes?
5. Asked after the first 15 trainings: is `ward` with an unpruned end, at the same mean cost of a
   step, nearer to unpruned training at equal steps?
6. Asked after those: is `tome 0.7`, which merges as many tokens in each block, nearer?
7. Asked after three of those: questions 1 and 2 of trainings three times as long, at 112 px. Seed 0
   had been run to 300 steps before (-0.5 points).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, nn

import elip_plugin
from benchmarks.pretrained import heads, scores
from benchmarks.pretrained.features import load_tower, to_images
from benchmarks.pretrained.photos import Photos
from benchmarks.stats import difference
from benchmarks.tables import markdown, signed
from elip_plugin import ElipConfig

ARMS: dict[str, str | dict[str, Any] | None] = {
    "unpruned": None,
    "ward 0.7": {
        "reducer": "ward",
        "stages": [{"block": 0, "lookahead": 1, "keep": 0.71}],
        "text_weight": 0.0,
        "reference_depth": 12,
        "eval_mode": "image",
    },
    "tome 0.7": {
        "reducer": "tome",
        "stages": [{"block": 0, "lookahead": 1, "keep": 0.71}],
        "text_weight": 0.0,
        "reference_depth": 12,
        "eval_mode": "image",
    },
    "half": "half",
    "third": "third",
    "level": "level",
    "ward, end": {
        "reducer": "ward",
        "stages": [{"block": 0, "lookahead": 1, "keep": 0.655}],
        "text_weight": 0.0,
        "reference_depth": 12,
        "eval_mode": "image",
        "final_unpruned": 0.15,
    },
    "random half": {"preset": "half", "reducer": "random"},
}
"""What is compared: plans by name. `ward 0.7` is nearly `embed`, which prunes training as well."""

BATCH = {112: 48, 224: 24}
STEPS = {112: 100, 224: 60}
"""Steps of unpruned training where none are asked for, by the side of the pictures in pixels."""

TABLES = {"112": (112, 100), "112 300": (112, 300), "224": (224, 60)}
"""Side and steps of each table."""

RATE, NEW_RATE, DECAY, RISE, AVERAGE, WIDTH = 5e-5, 1e-3, 0.05, 20, 0.95, 256
LARGEST_LOGIT = 100.0
LOG = Path(__file__).parents[2] / "docs" / "results" / "finetuning.jsonl"
EVALUATED = ("unpruned", "embed")
"""How the towers are scored: with all tokens, and as they would embed."""


class Pair(nn.Module):
    """An image and a text tower with projections: class token and mean of patches; mean of words.

    Args:
        vision: Folder of the image tower.
        text: Folder of the text model.
    """

    def __init__(self, vision: Path, text: Path) -> None:
        import transformers

        super().__init__()
        self.image, self.text = load_tower(vision), load_tower(text)
        # The fused attention of torch 2.13 on a processor has a backward of twice its time.
        self.image.set_attn_implementation("eager")
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(text, local_files_only=True)
        self.from_image = nn.Linear(2 * self.image.config.hidden_size, WIDTH, bias=False)
        self.from_text = nn.Linear(self.text.config.hidden_size, WIDTH, bias=False)
        self.scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def images(self, images: Tensor) -> Tensor:
        """Embed images [B, 3, height, width]: [B, WIDTH]."""
        tokens = self.image(pixel_values=images).last_hidden_state
        return F.normalize(
            self.from_image(torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], dim=1)).float(), dim=1
        )

    def texts(self, texts: list[str]) -> Tensor:
        """Embed texts: [B, WIDTH]."""
        words = self.tokenizer(
            texts, padding=True, truncation=True, max_length=32, return_tensors="pt"
        )
        mask = words["attention_mask"].unsqueeze(-1)
        states = self.text(**words).last_hidden_state
        return F.normalize(self.from_text((states * mask).sum(1) / mask.sum(1)).float(), dim=1)

    def loss(self, images: Tensor, texts: list[str]) -> Tensor:
        """Compute the contrastive loss of pairs."""
        scale = self.scale.exp().clamp(max=LARGEST_LOGIT)
        logits = scale * self.images(images) @ self.texts(texts).T
        labels = torch.arange(len(logits))
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def run(
    vision: Path, text: Path, photos: Photos, arm: str, seed: int, side: int, steps: int
) -> dict[str, Any]:
    """Train a pair with a plan, and score it after equal steps and after equal operations.

    Args:
        vision: Folder of the image tower.
        text: Folder of the text model.
        photos: Photographs; those for training are learned from, those for test scored.
        arm: Of `ARMS`.
        seed: Of projections, order, captions and flips.
        side: Pixels.
        steps: Of unpruned training.

    Returns:
        A line of the log.
    """
    cost, end = cost_of(vision, arm, side)
    equal = {"steps": steps, "operations": round(steps / cost)}
    found: dict[str, Any] = {}
    # An unpruned end is the end of one budget alone; without one, a training serves both.
    for budgets in [{name: steps} for name, steps in equal.items()] if end else [equal]:
        found |= train(vision, text, photos, arm, seed, side, budgets)
    return {"name": arm, "seed": seed, "side": side, "cost": round(cost, 4), **found}


def cost_of(vision: Path, arm: str, side: int) -> tuple[float, float]:
    """Return the cost of a mean training step over unpruned, and which share is an unpruned end."""
    if ARMS[arm] is None:
        return 1.0, 0.0
    tower = load_tower(vision)
    handle = elip_plugin.apply(tower, ARMS[arm], image_size=side)
    end = handle.config.final_unpruned
    return end + (1 - end) * handle.plan.train_cost(tower.config.hidden_size), end


def train(
    vision: Path,
    text: Path,
    photos: Photos,
    arm: str,
    seed: int,
    side: int,
    budgets: Mapping[str, int],
) -> dict[str, Any]:
    """Train a pair, and score it after the steps of each budget; the other arguments are `run`'s.

    Args:
        vision: Folder of the image tower.
        text: Folder of the text model.
        photos: Photographs.
        arm: Of `ARMS`.
        seed: Of projections, order, captions and flips.
        side: Pixels.
        budgets: Steps by name; the training ends after the most.

    Returns:
        What was found, by the names.
    """
    torch.manual_seed(seed)
    pair = Pair(vision, text)
    pair.image.config.image_size = side
    handle = elip_plugin.apply(pair.image, ARMS[arm], image_size=side) if ARMS[arm] else None
    last, batch = max(budgets.values()), BATCH[side]
    new = [*pair.from_image.parameters(), *pair.from_text.parameters(), pair.scale]
    optimizer = torch.optim.AdamW(
        [{"params": [*pair.image.parameters(), *pair.text.parameters()], "lr": RATE},
         {"params": new, "lr": NEW_RATE}],
        weight_decay=DECAY,
    )  # fmt: skip
    rise = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min(1.0, (i + 1) / RISE))
    average = {name: p.detach().clone() for name, p in pair.named_parameters()}
    draw = np.random.default_rng(seed)
    order: list[int] = []
    found: dict[str, Any] = {}
    spent, losses = 0.0, []
    for step in track(range(1, last + 1), f"{arm}, seed {seed}, {side} px"):
        started = time.process_time()
        if len(order) < batch:
            order += draw.permutation(photos.parts["training"]).tolist()
        chosen, order = order[:batch], order[batch:]
        images = to_images(np.stack([photos.pixels[i] for i in chosen]), side)
        turned = torch.from_numpy(draw.random(batch) < 0.5)
        images = torch.where(turned[:, None, None, None], images.flip(3), images)
        captions = [photos.captions[i][draw.integers(5)] for i in chosen]
        if handle is not None:
            handle.update_progress(step - 1, last)
        pair.train()
        with torch.autocast("cpu", torch.bfloat16):
            loss = pair.loss(images, captions)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(pair.parameters(), 1.0)
        optimizer.step()
        rise.step()
        kept = min(AVERAGE, step / (step + 10))
        for name, p in pair.named_parameters():
            average[name].lerp_(p.detach(), 1 - kept)
        losses.append(float(loss.detach()))
        spent += time.process_time() - started
        if step in budgets.values():
            result = {
                "trained": step, "seconds": round(spent, 1),
                "loss": round(float(np.mean(losses[-20:])), 4),
                **evaluate(Pair(vision, text), average, photos, side),
            }  # fmt: skip
            found |= {budget: result for budget, steps in budgets.items() if steps == step}
    return found


def evaluate(
    scored: Pair, average: Mapping[str, Tensor], photos: Photos, side: int
) -> dict[str, dict[str, float]]:
    """Score averaged weights on the test photographs, by each plan of `EVALUATED`."""
    scored.load_state_dict(dict(average), strict=False)
    scored.eval()
    part = photos.parts["test"]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        captions = [caption for i in part for caption in photos.captions[i]]
        texts = torch.cat(
            [scored.texts(captions[i : i + 250]) for i in range(0, len(captions), 250)]
        )
        found = {}
        for plan in EVALUATED:
            if plan != "unpruned":
                elip_plugin.apply(scored.image, ElipConfig.preset(plan), image_size=side)
            images = torch.cat(
                [
                    scored.images(to_images(photos.pixels[part[i : i + 50]], side))
                    for i in range(0, len(part), 50)
                ]
            )
            hits = scores.hits([heads.ranks_of(images, texts)])
            found[plan] = {name: round(float(values.mean()), 5) for name, values in hits.items()}
    return found


def key_of(row: Mapping[str, Any]) -> tuple[str, int, int, int]:
    """Return plan, seed, side and steps of a line of the log."""
    return row["name"], row["seed"], row["side"], row["steps"]["trained"]


def table(rows: Sequence[Mapping[str, Any]], side: int, steps: int, score: str = "t2i R@1") -> str:
    """Make the table of a side and length: points over unpruned training, paired by seed.

    Args:
        rows: The log.
        side: Pixels.
        steps: Of unpruned training.
        score: Of `scores.hits`.

    Returns:
        A table in Markdown; its first row has shares of 100 themselves.
    """
    own = {key_of(row)[:2]: row for row in rows if key_of(row)[2:] == (side, steps)}

    def scored(name: str, budget: str, tested: str) -> dict[int, float]:
        return {s: row[budget][tested][score] for (n, s), row in own.items() if n == name}

    cells = []
    for name in ARMS:
        seeds = scored(name, "steps", "unpruned")
        if not seeds:
            continue
        columns = [(budget, tested) for tested in EVALUATED for budget in ("steps", "operations")]
        texts = []
        for budget, tested in columns:
            base = scored("unpruned", "steps", tested)
            if name == "unpruned":
                texts.append(f"{100 * np.mean(list(base.values())):.1f}")
            else:
                found = difference(scored(name, budget, tested), base)
                texts.append(f"{signed(found)} ({found.seeds})")
        some = [row for (n, _), row in own.items() if n == name]
        seconds = np.mean([r["operations"]["seconds"] / r["operations"]["trained"] for r in some])
        cells.append((f"`{name}`", f"{some[0]['cost']:.2f}", *texts, f"{seconds:.1f}"))
    header = (
        "plan", "step", "equal steps", "equal operations", "equal steps, `embed` at test",
        "equal operations, `embed` at test", "processor s per step",
    )  # fmt: skip
    return markdown(header, cells)
