"""A host of another package that only describes: apply, guide, remove; it offers no names."""

from pathlib import Path
from typing import Any

import pytest
import torch
from entry_points import elip, installed_package
from torch import Tensor, nn

import elip_plugin
from elip_plugin.errors import UnknownModelError, UnsupportedModelError
from elip_plugin.hosts.base import Host
from elip_plugin.hosts.registry import find_host
from elip_plugin.patching.blocks import PrunableBlock
from elip_plugin.patching.description import Description, Tower
from elip_plugin.patching.parts import Parts


class ViT(nn.Module):  # somebody's library
    __module__ = "toyvit.models"

    def __init__(self) -> None:
        super().__init__()
        self.conv, options = nn.Conv2d(3, 32, 8, 8), {"norm_first": True, "batch_first": True}
        layers = (nn.TransformerEncoderLayer(32, 2, 64, 0.0, **options) for _ in range(12))
        self.blocks = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Any:
        x = self.conv(images).flatten(2).transpose(1, 2)
        return self.blocks(torch.cat([x.mean(1, True), x], 1))[:, 0]


PARTS = Parts(  # its host
    "norm1", "self_attn", norm_2="norm2", mlp=("linear1", "activation", "linear2")
)


class ToyHost(Host):
    name = module = distribution = "toyvit"
    install = "pip install toyvit"

    def describe(self, module: Any) -> Description:
        parts = {nn.TransformerEncoderLayer: PARTS}
        return Description(module, Tower(module, "blocks", parts, num_patches=64, width=32))

    def text_guide(self, module: Any, features: Tensor) -> Tensor:
        return features.detach()


HOST = ToyHost()  # its last line


@pytest.fixture
def installed(tmp_path: Path) -> Any:
    (tmp_path / "toyvit.py").touch()
    with installed_package(tmp_path, "toyvit", "elip_plugin.hosts", f"{__name__}:HOST"):
        yield


def test_it_is_short() -> None:
    lines = Path(__file__).read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line.endswith("# its host"))
    last = next(i for i, line in enumerate(lines) if line.endswith("# its last line"))
    assert last - first < 25


@pytest.mark.parametrize("config", ["half", "fast"])
def test_apply_guide_and_remove(installed: Any, config: str) -> None:
    model, images = ViT(), torch.rand(2, 3, 64, 64)
    classes, unpruned = [type(module) for module in model.modules()], model(images)
    handle = elip_plugin.apply(model, config)
    patched = [i for i, block in enumerate(model.blocks) if isinstance(block, PrunableBlock)]
    assert patched == ([2, 4, 10] if config == "fast" else [*range(12)])  # and no other
    with handle.guide(torch.randn(2, 32)):
        assert not torch.equal(model(images), unpruned)
    with handle.disabled():
        assert torch.equal(model(images), unpruned)
    handle.remove()
    assert [type(module) for module in model.modules()] == classes
    assert torch.equal(model(images), unpruned)
    assert not [name for module in model.modules() for name in vars(module) if "elip" in name]


def test_what_needs_names_finds_none(installed: Any) -> None:
    assert elip_plugin.list_models("toyvit") == []
    assert "toyvit 1.5: no list of models" in elip("models --host toyvit")
    with pytest.raises(UnknownModelError, match=r"not known to the hosts .*'toyvit'"):
        elip_plugin.create("no-such-model")
    elip_plugin.list_models()  # of the others


def test_a_host_that_describes_nothing_is_no_host() -> None:
    with pytest.raises(TypeError, match="abstract"):
        type("Empty", (Host,), {})()
    assert find_host(ViT()).name == "anyvit"  # its own is not installed here
    elip_plugin.apply(ViT(), "half").remove()
    with pytest.raises(UnsupportedModelError, match="Linear comes from none of the hosts"):
        elip_plugin.apply(nn.Linear(2, 2))
