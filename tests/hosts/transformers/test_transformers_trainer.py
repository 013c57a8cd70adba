"""transformers' Trainer on pruned models: schedules, data columns, saving."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import recorded_lengths

import elip_plugin
from elip_plugin.errors import UnsupportedModelError

hf = pytest.importorskip("transformers", minversion="4.57")
pytest.importorskip("accelerate")

from hosts.transformers.tiny import inputs, layers_of, make  # noqa: E402

STEPS = 8
SCHEDULE = {"preset": "fast", "warmup": 0.5, "final_unpruned": 0.25}


class Pairs(torch.utils.data.Dataset):
    """Pairs with a column that no model knows."""

    def __init__(self, family: str = "clip") -> None:
        self.batch = inputs(batch=16, family=family)
        self.batch.pop("return_loss", None)

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = {key: column[index] for key, column in self.batch.items()}
        return {**row, "caption": "unknown"}


def columns(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {k: torch.stack([row[k] for row in rows]) for k in rows[0] if k != "caption"}


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    assert all("caption" not in row for row in rows)
    loss = {} if "labels" in rows[0] else {"return_loss": True}
    return {**columns(rows), **loss}


def train(
    model: Any,
    out: Path,
    callbacks: Any = (),
    resume: str | None = None,
    family: str = "clip",
    **options: Any,
) -> Any:
    args = hf.TrainingArguments(
        **{
            **{"output_dir": str(out), "per_device_train_batch_size": 4, "max_steps": STEPS},
            **{"report_to": [], "use_cpu": True, "save_strategy": "no", "logging_steps": 1},
            **{"disable_tqdm": True, "seed": 0, "learning_rate": 1e-3, **options},
        }
    )
    trainer = hf.Trainer(
        model, args, train_dataset=Pairs(family), data_collator=collate, callbacks=list(callbacks)
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def recorded(model: Any) -> Any:
    """The tokens in the last block, forward by forward."""
    return recorded_lengths([layers_of(model)[-1]])


@pytest.mark.parametrize("family", ["clip", "siglip", "blip_vqa", "instructblip"])
def test_a_schedule_is_followed_and_the_result_is_saved(family: str, tmp_path: Path) -> None:
    model = make(family)
    model.accepts_loss_kwargs = False  # else transformers 4.57's BLIP refuses its Trainer's
    handle = elip_plugin.apply(model, SCHEDULE)
    with recorded(model) as lengths:
        trainer = train(model, tmp_path, [elip_plugin.TrainerCallback()], family=family)
    full, pruned = 64 + model.elip.shape.prefix, handle.plan.tokens[-1]
    assert len(lengths) == STEPS
    assert lengths[0] == full and lengths[4] == lengths[5] == pruned
    assert lengths[:5] == sorted(lengths[:5], reverse=True) and len(set(lengths[:5])) > 2
    assert lengths[-2:] == [full] * 2
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == STEPS and all(loss < 100 for loss in losses)
    trainer.save_model(str(tmp_path / "saved"))
    loaded = type(model).replaces.from_pretrained(tmp_path / "saved")
    assert type(loaded) is type(model).replaces
    assert elip_plugin.ElipConfig.from_mapping(loaded.config.elip) == handle.config
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_without_a_schedule_no_callback_is_needed(tmp_path: Path) -> None:
    model = make("clip")
    handle = elip_plugin.apply(model, "fast")
    with recorded(model) as lengths:
        train(model, tmp_path)
    assert lengths == [handle.plan.tokens[-1]] * STEPS


def test_a_resumed_training_goes_on_in_the_schedule(tmp_path: Path) -> None:
    def run(out: Path, **options: Any) -> tuple[list[int], Any]:
        model = make("clip")
        elip_plugin.apply(model, SCHEDULE)
        with recorded(model) as lengths:
            train(model, out, [elip_plugin.TrainerCallback()], **options)
        return lengths, model

    lengths, model = run(tmp_path, save_strategy="steps", save_steps=3)
    checkpoint = tmp_path / "checkpoint-3"
    assert json.loads((checkpoint / "config.json").read_text())["architectures"] == ["CLIPModel"]
    resumed, again = run(tmp_path / "again", resume=str(checkpoint))
    assert resumed == lengths[3:] and len(set(resumed)) > 2
    for name, value in again.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name], rtol=0, atol=0, msg=name)


def test_accumulated_batches_are_pruned_alike(tmp_path: Path) -> None:
    model = make("clip")
    elip_plugin.apply(model, SCHEDULE)
    with recorded(model) as lengths:
        train(
            model, tmp_path, [elip_plugin.TrainerCallback()],
            gradient_accumulation_steps=2, per_device_train_batch_size=2,
        )  # fmt: skip
    assert len(lengths) == 2 * STEPS
    assert lengths[::2] == lengths[1::2] and len(set(lengths)) > 3


def test_evaluation_between_steps_has_all_tokens(tmp_path: Path) -> None:
    model = make("clip")
    handle = elip_plugin.apply(model, "fast")
    with recorded(model) as lengths:
        trainer = train(model, tmp_path, [elip_plugin.TrainerCallback()])
        del lengths[:]
        trainer.evaluate(Pairs())
    assert set(lengths) == {65} and handle.plan.tokens[-1] < 65


def test_the_callback_refuses_a_model_that_is_not_pruned(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="is not pruned"):
        train(make("clip"), tmp_path, [elip_plugin.TrainerCallback()])


def test_an_own_loop_with_accelerate() -> None:
    accelerate = pytest.importorskip("accelerate")
    model = make("clip")
    handle = elip_plugin.apply(model, SCHEDULE)
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    loader = torch.utils.data.DataLoader(Pairs(), 2, collate_fn=columns)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    prepared, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    prepared.train()
    with recorded(model) as lengths:
        for i, batch in enumerate(loader):
            elip_plugin.find_handle(prepared).update_progress(i // 2, len(loader) // 2)
            with accelerator.accumulate(prepared):
                accelerator.backward(prepared(**batch, return_loss=True).loss)
                optimizer.step()
                optimizer.zero_grad()
    assert lengths[::2] == lengths[1::2]
    first, second, third, last = lengths[::2]
    assert first == last == 65 > second > third == handle.plan.tokens[-1]
    assert any(not torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.slow
def test_the_callback_is_found_late_and_its_absence_is_explained() -> None:
    late = "import sys, elip_plugin; assert not {'torch', 'transformers'} & sys.modules.keys()"
    missing = (
        "import sys; sys.modules['transformers'] = None; import elip_plugin; from elip_plugin "
        "import *; elip_plugin.TrainerCallback"
    )
    env = {**os.environ, "ELIP_AUTOLOAD": "0"}
    for code in (late, missing):
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        assert (done.returncode == 0) == (code == late), done.stderr
    assert "MissingHostError: TrainerCallback is for transformers" in done.stderr
    assert "pip install 'elip-plugin[transformers]'" in done.stderr
    assert issubclass(elip_plugin.TrainerCallback, hf.TrainerCallback)
