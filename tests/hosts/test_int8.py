"""Quantized layers act in a pruned forward as in any other, or are refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hosts.rows import NAMES, ROWS
from torch import Tensor, nn

import elip_plugin
from elip_plugin.errors import UnsupportedModelError
from elip_plugin.patching.install import find_pruner


def dynamic(model: Any) -> Any:
    """Quantize linear layers by torch's own `quantize_dynamic`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated in favour of torchao
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def weights_only(model: Any) -> Any:
    """Quantize the weights of linear layers by torchao."""
    torchao = pytest.importorskip("torchao.quantization")
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    return model


QUANTIZE: dict[str, Callable[[Any], Any]] = {"dynamic": dynamic, "torchao": weights_only}
PLANS: dict[str, Any] = {"half": "half", "fast": {"preset": "fast", "text_weight": 0.5}}


def encode(row: str, model: Any) -> Tensor:
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    pruner = find_pruner(elip_plugin.find_handle(model).model)
    guide = torch.randn(2, pruner.shape.width, generator=torch.Generator().manual_seed(4))
    with torch.no_grad(), pruner.asked(guide=guide, eval_mode="text"):
        features: Tensor = ROWS[row].encode(model, images)
    return features


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("how", QUANTIZE)
@pytest.mark.parametrize("row", NAMES)
def test_quantized_layers_are_called(row: str, how: str, plan: str) -> None:
    if row == "timm EVA":
        pytest.skip("timm reads the weight of its projection, which then fails, pruned or not")
    exact = ROWS[row].make().eval()
    elip_plugin.apply(exact, PLANS[plan])
    quantize, found = QUANTIZE[how], []
    for first in ("pruned", "quantized"):
        model = ROWS[row].make().eval()
        if first == "pruned":
            elip_plugin.apply(model, PLANS[plan])
            model = quantize(model)
        else:
            model = quantize(model)
            if row in ("DINOv2", "ViT"):  # whose blocks are found, and checked by numbers
                with pytest.raises(UnsupportedModelError, match="quantize the model then"):
                    elip_plugin.apply(model, PLANS[plan])
                continue
            elip_plugin.apply(model, PLANS[plan])
        found.append(encode(row, model))
    assert torch.equal(found[0], found[-1])
    model = ROWS[row].make().eval()
    elip_plugin.apply(model, PLANS[plan])
    model = quantize(model)
    with elip_plugin.find_handle(model).disabled():
        whole = encode(row, model)
    with elip_plugin.find_handle(exact).disabled():
        error = (whole - encode(row, exact)).norm() / whole.norm()
    assert 0 < error < 0.2
    # A choice near a tie may fall the other way.
    assert (found[0] - encode(row, exact)).norm() / whole.norm() < 0.3


@pytest.mark.newest
def test_a_layer_whose_weight_is_read_is_refused_in_one_sentence() -> None:
    model = dynamic(ROWS["timm EVA"].make().eval())
    elip_plugin.apply(model, "half")
    with pytest.raises(UnsupportedModelError, match="leave this layer out of the quantization"):
        encode("timm EVA", model)
