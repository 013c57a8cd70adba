"""transformers' Trainer on pruned models: schedules, data columns, saving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import recorded_lengths

import elip_plugin

hf = pytest.importorskip("transformers", minversion="4.57")
pytest.importorskip("accelerate")

from hosts.transformers.tiny import inputs, make, tower_of  # noqa: E402

from elip_plugin.hosts.transformers.trainer import TrainerCallback  # noqa: E402

STEPS = 8


class Pairs(torch.utils.data.Dataset):
    """Pairs with a column that no model knows."""

    def __init__(self) -> None:
        self.batch = inputs(batch=16)

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = {k: self.batch[k][index] for k in ("input_ids", "attention_mask", "pixel_values")}
        return {**row, "caption": "unknown"}


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    assert all("caption" not in row for row in rows)
    return {**{k: torch.stack([row[k] for row in rows]) for k in rows[0]}, "return_loss": True}


def train(model: Any, out: Path, callbacks: Any = ()) -> Any:
    args = hf.TrainingArguments(
        output_dir=str(out), per_device_train_batch_size=4, max_steps=STEPS, report_to=[],
        use_cpu=True, save_strategy="no", logging_steps=1, disable_tqdm=True, seed=0,
        learning_rate=1e-3,
    )  # fmt: skip
    trainer = hf.Trainer(
        model, args, train_dataset=Pairs(), data_collator=collate, callbacks=list(callbacks)
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_a_schedule_is_followed_and_the_result_is_saved(family: str, tmp_path: Path) -> None:
    model = make(family)
    config = {"preset": "fast", "warmup": 0.5, "final_unpruned": 0.25}
    handle = elip_plugin.apply(model, config)
    with recorded_lengths([tower_of(model).encoder.layers[-1]]) as lengths:
        trainer = train(model, tmp_path, [TrainerCallback()])
    full, pruned = tower_of(model).embeddings.num_patches, handle.plan.tokens[-1]
    full += model.elip.shape.prefix
    assert len(lengths) == STEPS
    assert lengths[0] == full and lengths[4] == lengths[5] == pruned
    assert lengths[:5] == sorted(lengths[:5], reverse=True) and len(set(lengths[:5])) > 2
    assert lengths[-2:] == [full] * 2
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == STEPS and all(loss < 100 for loss in losses)
    trainer.save_model(str(tmp_path / "saved"))
    loaded = hf.AutoModel.from_pretrained(tmp_path / "saved")
    assert type(loaded) is type(model).replaces
    assert elip_plugin.ElipConfig.from_mapping(loaded.config.elip) == handle.config
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_without_a_schedule_no_callback_is_needed(tmp_path: Path) -> None:
    model = make("clip")
    handle = elip_plugin.apply(model, "fast")
    with recorded_lengths([tower_of(model).encoder.layers[-1]]) as lengths:
        train(model, tmp_path)
    assert lengths == [handle.plan.tokens[-1]] * STEPS
