"""Adapters of peft act in a pruned forward as in any other, on each kind of tower."""

from __future__ import annotations

import functools
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import elip_plugin
from benchmarks.faults.counting import tried
from elip_plugin.errors import UnsupportedModelError
from elip_plugin.patching.install import find_pruner

peft = pytest.importorskip("peft")

from hosts.rows import NAMES, ROWS  # noqa: E402

KINDS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "rsLoRA": {"use_rslora": True},
    "DoRA": {"use_dora": True},
    "IA3": {},
}

PLANS: dict[str, Any] = {
    "half": "half",
    "third": "third",
    "fast": {"preset": "fast", "text_weight": 0.5},
    "similarity": {"reducer": "similarity", "preset": "fast"},
}
ORDERS = ("pruned first", "adapted first")
TOLERANCE = 1e-5


def adapt(row: str, model: Any, kind: str) -> Any:
    """Wrap a model by adapters that are not zero, equal ones each time.

    Where the attention is torch's own, DoRA and IA3, which peft has for linear layers only,
    are put on the MLP alone.
    """
    torch.manual_seed(5)
    names = [
        name
        for name, module in model.named_modules()
        if ROWS[row].tower in name
        and name.split(".")[-1] in ROWS[row].targets
        and (kind in ("LoRA", "rsLoRA") or isinstance(module, nn.Linear))
    ]
    if kind == "IA3":
        mlp = [name for name in names if name.split(".")[-1] in ROWS[row].mlp]
        config: Any = peft.IA3Config(target_modules=names, feedforward_modules=mlp)
    else:
        options = KINDS[kind]
        config = peft.LoraConfig(r=4, target_modules=names, init_lora_weights=False, **options)
    adapted = peft.get_peft_model(model, config).train()
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "ia3_" in name:
                parameter.copy_(0.5 + torch.rand(parameter.shape, generator=generator))
    return adapted


def merged(adapted: Any) -> Any:
    """Merge a copy's adapters into its weights and take the wrappers off."""
    return deepcopy(adapted).merge_and_unload()


def adapters_of(model: Any) -> dict[str, nn.Parameter]:
    """Return the adapters' weights by name."""
    return {n: p for n, p in model.named_parameters() if "lora_" in n or "ia3_" in n}


def images() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))


def encode(row: str, model: Any) -> Tensor:
    """Encode images, guided where a text decides."""
    pruner = find_pruner(elip_plugin.find_handle(model).model)
    guide = torch.randn(2, pruner.shape.width, generator=torch.Generator().manual_seed(4))
    with pruner.asked(guide=guide):
        features: Tensor = ROWS[row].encode(model, images())
    return features


def close(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() < TOLERANCE * expected.abs().max())


@functools.cache
def _base(row: str) -> Any:
    return ROWS[row].make()


def pruned(row: str, kind: str, plan: str, order: str) -> Any:
    """Make an adapted and pruned model."""
    model = deepcopy(_base(row))
    if order == "pruned first":
        elip_plugin.apply(model, PLANS[plan])
        return adapt(row, model, kind)
    adapted = adapt(row, model, kind)
    elip_plugin.apply(adapted, PLANS[plan])
    return adapted


def _cases() -> list[Any]:
    """All in CI; without the slow ones each kind, row, plan and order, but not all together."""
    cases = []
    for row in ROWS:
        for i, kind in enumerate(KINDS):
            for j, plan in enumerate(PLANS):
                marks = [] if i == j or (kind == "LoRA" and plan == "half") else [pytest.mark.slow]
                marks += [] if row.startswith("LAVIS") else [pytest.mark.newest]
                cases += [pytest.param(row, kind, plan, marks=marks, id=f"{row}-{kind}-{plan}")]
    return cases


@pytest.mark.parametrize(("row", "kind", "plan"), _cases())
def test_adapters_act_and_train_as_if_they_were_merged(row: str, kind: str, plan: str) -> None:
    if plan == "similarity" and row in ("SigLIP", "timm ViT", "timm EVA"):
        pytest.skip("similarity needs a class token, or the norm of one")
    for order in ORDERS:
        adapted = pruned(row, kind, plan, order)
        features = encode(row, adapted)
        features.square().sum().backward()
        tried(f"{kind} on a model that is {order}")
        adapters = adapters_of(adapted)
        assert adapters
        trained = [n for n, p in adapters.items() if p.grad is not None and p.grad.abs().sum() > 0]
        assert trained == list(adapters)
        plain = merged(adapted)
        assert not adapters_of(plain)
        expected = encode(row, plain)
        assert close(features, expected)
        with elip_plugin.find_handle(plain).disabled():
            assert not close(features, ROWS[row].encode(plain, images()))  # it prunes
        adapted.merge_adapter()
        assert close(encode(row, adapted), expected)
        adapted.unmerge_adapter()
        assert close(encode(row, adapted), expected)
        with adapted.disable_adapter():
            base = deepcopy(_base(row))
            elip_plugin.apply(base, PLANS[plan])
            assert close(encode(row, adapted), encode(row, base))


@pytest.mark.parametrize("row", NAMES)
def test_adapters_are_saved_and_loaded_again(row: str, tmp_path: Path) -> None:
    adapted = pruned(row, "LoRA", "half", "pruned first")
    expected = encode(row, adapted)
    adapted.save_pretrained(tmp_path)
    base = deepcopy(_base(row))
    elip_plugin.apply(base, "half")
    loaded = peft.PeftModel.from_pretrained(base, tmp_path).train()
    assert close(encode(row, loaded), expected)
    elip_plugin.find_handle(loaded).remove()  # nothing of the package is needed to use them
    unpruned = peft.PeftModel.from_pretrained(deepcopy(_base(row)), tmp_path).train()
    assert torch.equal(ROWS[row].encode(loaded, images()), ROWS[row].encode(unpruned, images()))


def test_an_adapter_on_what_torch_reads_by_itself_is_refused() -> None:
    """Unpruned it has no effect: torch reads the weight of `out_proj`, and does not call it."""
    model = deepcopy(_base("OpenCLIP"))
    elip_plugin.apply(model, "half")
    config = peft.LoraConfig(target_modules=r"visual.*out_proj", init_lora_weights=False)
    adapted = peft.get_peft_model(model, config)
    with pytest.raises(UnsupportedModelError, match="past the adapter on it, which would have no"):
        adapted.encode_image(images())
