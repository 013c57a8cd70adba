"""A CLIP inside of sentence-transformers: its losses encode texts and pictures apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import recorded_lengths
from PIL import Image

import elip_plugin

hf = pytest.importorskip("transformers", minversion="4.57")
st = pytest.importorskip("sentence_transformers", minversion="5")
losses = pytest.importorskip("sentence_transformers.losses")

from hosts.transformers.tiny import layers_of, make  # noqa: E402

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "green", "blue", "picture"]
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


@pytest.fixture
def model(tmp_path: Path) -> Any:
    """A small CLIP in a folder, as sentence-transformers loads it."""
    folder = tmp_path / "clip"
    clip = make("clip")
    clip.config.text_config.eos_token_id = WORDS.index("[SEP]")
    clip.save_pretrained(folder)
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = hf.BertTokenizerFast(str(tmp_path / "vocab.txt"), model_max_length=12)
    pixels = hf.CLIPImageProcessor(size={"shortest_edge": 64}, crop_size=64)
    hf.CLIPProcessor(pixels, tokenizer).save_pretrained(folder)
    return st.SentenceTransformer(str(folder), device="cpu")


@pytest.mark.parametrize("config", ["half", {"preset": "fast", "text_weight": 0.0}], ids=str)
def test_its_losses_prune_by_the_image_alone(model: Any, config: Any, tmp_path: Path) -> None:
    clip = next(m for m in model.modules() if isinstance(m, hf.CLIPModel))
    handle = elip_plugin.apply(clip, config)
    pictures = [Image.new("RGB", (64, 64), colour) for colour in COLOURS.values()]
    texts = [f"a {name} picture" for name in COLOURS]
    prepare = getattr(model, "preprocess", model.tokenize)
    loss = losses.MultipleNegativesRankingLoss(model.train())
    with recorded_lengths(layers_of(clip)) as lengths:
        loss([prepare(pictures), prepare(texts)], torch.arange(3)).backward()
    assert lengths == list(handle.plan.tokens)
    assert layers_of(clip)[0].self_attn.q_proj.weight.grad.abs().sum() > 0
    features = model.eval().encode(pictures, convert_to_tensor=True)
    model.save_pretrained(str(tmp_path / "saved"))
    again = st.SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    torch.testing.assert_close(again.encode(pictures, convert_to_tensor=True), features)
    assert not any("elip" in vars(module) for module in again.modules())


def test_a_text_guide_is_never_there_and_a_warning_says_so(model: Any) -> None:
    clip = next(m for m in model.modules() if isinstance(m, hf.CLIPModel))
    elip_plugin.apply(clip, "fast")
    prepare = getattr(model, "preprocess", model.tokenize)
    with pytest.warns(UserWarning, match="without a text guide"):
        model.train()(prepare([Image.new("RGB", (64, 64))]))


def test_its_own_trainer_prunes_every_step(model: Any, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    clip = next(m for m in model.modules() if isinstance(m, hf.CLIPModel))
    schedule = {"preset": "fast", "text_weight": 0.0, "final_unpruned": 0.5}
    handle = elip_plugin.apply(clip, schedule)
    names = list(COLOURS) * 4
    pairs = datasets.Dataset.from_dict(
        {
            "anchor": [Image.new("RGB", (64, 64), COLOURS[name]) for name in names],
            "positive": [f"a {name} picture" for name in names],
        }
    )
    arguments = st.SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path / "run"),
        max_steps=4,
        per_device_train_batch_size=3,
        save_strategy="no",
        logging_steps=1,
        report_to=[],
        use_cpu=True,
    )
    trainer = st.SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset=pairs,
        loss=losses.MultipleNegativesRankingLoss(model),
        callbacks=[elip_plugin.TrainerCallback()],
    )
    weight = layers_of(clip)[0].self_attn.q_proj.weight
    before = weight.detach().clone()
    with recorded_lengths([layers_of(clip)[-1]]) as lengths:
        trainer.train()
    assert lengths == [handle.plan.tokens[-1]] * 2 + [65] * 2
    assert not torch.equal(weight, before)
    logged = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(logged) == 4 and all(torch.tensor(logged).isfinite())
