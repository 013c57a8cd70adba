"""Other people's code, and long lives: copies, averages, quantized layers, ten thousand times."""

from __future__ import annotations

import gc
import io
import pickle
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.faults.counting import is_long, measured, tried
from elip_plugin import apply, find_handle
from elip_plugin.reducers import reducers

Make = Callable[..., Any]
Pairs = tuple[torch.Tensor, torch.Tensor]
NAMES = [name for name in reducers() if name != "similarity"]
TIMES = 10_000 if is_long() else 50
KEPT = 101
"""Points of the curves of memory."""


def configured(name: str) -> dict[str, Any]:
    return {"reducer": name}


def encode(model: Any, pairs: Pairs) -> torch.Tensor:
    torch.manual_seed(0)
    return model(*pairs)["image_features"].detach()


def resident() -> float:
    """Megabytes of this process in memory."""
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


WAYS: dict[str, Callable[[Any], Any]] = {
    "deepcopy": deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": lambda model: _saved(model),
    "EMA copy": lambda model: torch.optim.swa_utils.AveragedModel(model).module,
}


def _saved(model: Any) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_copies(name: str, way: str, tiny_clip: Make, pairs: Pairs) -> None:
    """A copy is pruned as the original, and by itself: removing one leaves the other."""
    model = tiny_clip()
    unpruned = encode(model, pairs)
    apply(model, configured(name))
    expected = encode(model, pairs)
    assert not torch.equal(expected, unpruned)
    copy = WAYS[way](model).train()
    assert torch.equal(encode(copy, pairs), expected)
    find_handle(copy).remove()
    assert torch.equal(encode(copy, pairs), unpruned)
    assert torch.equal(encode(model, pairs), expected)
    find_handle(model).remove()
    assert torch.equal(encode(model, pairs), unpruned)
    tried("copies of models")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["elip", "tome", "evit", "pool"])
def test_an_average_follows_a_training(name: str, tiny_clip: Make, pairs: Pairs) -> None:
    """Its weights are those of an average without pruning of the same steps' weights."""
    model = tiny_clip()
    apply(model, configured(name))
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5)
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    weight = model.visual.conv1.weight
    expected = weight.detach().clone()
    for step in range(3):
        optimizer.zero_grad()
        model(*pairs)["image_features"].square().sum().backward()
        optimizer.step()
        average.update_parameters(model)
        expected = weight.detach().clone() if step == 0 else torch.lerp(expected, weight, 0.5)
    torch.testing.assert_close(average.module.visual.conv1.weight, expected.detach())
    assert find_handle(average).plan == find_handle(model).plan
    assert encode(average.module.train(), pairs).isfinite().all()
    tried("copies of models")


def assert_pruned_and_restored(model: Any, name: str, images: torch.Tensor) -> None:
    with torch.no_grad():
        unpruned = model.encode_image(images)
        handle = apply(model, {**configured(name), "eval_mode": "image"})
        torch.manual_seed(0)
        pruned = model.encode_image(images)
        handle.remove()
        assert torch.equal(model.encode_image(images), unpruned)
    assert pruned.isfinite().all() and not torch.equal(pruned, unpruned)
    tried("quantized models")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["evit", "tome", "unique", "pool", "random"])
def test_quantized_linears(name: str, tiny_clip: Make, pairs: Pairs) -> None:
    """The MLPs in int8 by torch's dynamic quantization: pruned as planned, removed bitwise."""
    model = tiny_clip().eval()
    for block in model.visual.transformer.resblocks:
        block.mlp = torch.ao.quantization.quantize_dynamic(block.mlp, {nn.Linear}, torch.qint8)
    assert_pruned_and_restored(model, name, pairs[0])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["evit", "tome", "unique", "pool", "random"])
def test_linears_of_torchao(name: str, tiny_clip: Make, pairs: Pairs) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    model = tiny_clip().eval()
    for block in model.visual.transformer.resblocks:
        quantization.quantize_(block.mlp, quantization.Int8WeightOnlyConfig())
    assert_pruned_and_restored(model, name, pairs[0])


def flat(curve: list[float], most: float) -> None:
    """After its first tenth it grows by no more than this many megabytes."""
    settled = curve[len(curve) // 10 :]
    assert max(settled) - settled[0] < most, (settled[0], max(settled))


@pytest.mark.filterwarnings("ignore")
def test_memory_of_applying_and_removing(tiny_clip: Make, pairs: Pairs) -> None:
    model = tiny_clip()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    configs = [*NAMES, {"preset": "fast", "warmup": 0.3}, {"preset": "lowres"}]
    curve = []
    gc.collect()
    known = len(gc.get_objects())
    for i in range(TIMES):
        config = configs[i % len(configs)]
        handle = apply(model, configured(config) if isinstance(config, str) else config)
        handle.update_progress(i % 10, 10)
        handle.remove()
        if i % max(1, TIMES // (KEPT - 1)) == 0:
            curve.append(round(resident(), 2))
    gc.collect()
    assert len(gc.get_objects()) - known < 5_000
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    if is_long():
        flat(curve, 20.0)
        measured("memory/apply and remove", curve)
    tried("apply and remove", TIMES)


@pytest.mark.filterwarnings("ignore")
def test_memory_of_steps(tiny_clip: Make) -> None:
    """Steps with another guide, number of patches and phase of the schedule each time."""
    model = tiny_clip(layers=4)
    stages = [{"block": 1, "lookahead": 1, "keep": 0.5}]
    handle = apply(model, {"stages": stages, "text_weight": 0.5, "warmup": 0.5})
    optimizer = torch.optim.AdamW(model.visual.parameters(), 1e-4)
    images, texts = torch.randn(2, 3, 64, 64), torch.randn(2, 32)
    curve = []
    for i in range(TIMES):
        handle.update_progress(i, TIMES)
        with handle.guide(texts + i):
            features = model.encode_image(images)
        optimizer.zero_grad()
        features.square().mean().backward()
        optimizer.step()
        if i % max(1, TIMES // (KEPT - 1)) == 0:
            curve.append(round(resident(), 2))
    assert features.isfinite().all()
    if is_long():
        flat(curve, 20.0)
        measured("memory/training steps", curve)
    tried("training steps", TIMES)
