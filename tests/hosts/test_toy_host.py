"""A host of another package, found by its entry point: models, plan, bench, show, apply, remove."""

from typing import Any

import torch
import torch.nn.functional as F
from entry_points import elip, installed_package
from PIL import Image
from torch import nn

import elip_plugin
from elip_plugin.hosts.base import Host, HostModel, ModelName
from elip_plugin.patching.blocks import PrunableBlock
from elip_plugin.patching.description import Description, Tower


class Clip(nn.Module):  # somebody's library
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.text = nn.Conv2d(3, 32, 8, 8), nn.EmbeddingBag(256, 16)
        self.head, options = nn.Linear(32, 16), {"norm_first": True, "batch_first": True}
        layers = (nn.TransformerEncoderLayer(32, 1, 128, 0.0, **options) for _ in range(12))
        self.blocks = nn.Sequential(*layers)

    def forward(self, images: Any) -> Any:
        x = self.conv(images).flatten(2).transpose(1, 2)
        return self.head(self.blocks(torch.cat([x.mean(1, True), x], 1))[:, 0])


class PrunableLayer(PrunableBlock, nn.TransformerEncoderLayer):  # its host
    replaces = nn.TransformerEncoderLayer

    def elip_project(self, x: Any) -> Any:
        packed = self.self_attn.in_proj_weight, self.self_attn.in_proj_bias
        return F.linear(self.norm1(x), *packed).unsqueeze(1).chunk(3, -1)

    def elip_attend(self, x: Any, bias: Any = None, **positions: Any) -> Any:
        q, k, v = self.elip_project(x)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.self_attn.out_proj(mixed.squeeze(1)), k

    def elip_query_and_keys(self, query: Any, x: Any, **positions: Any) -> Any:
        return self.elip_project(query)[0], self.elip_project(x)[1]

    def elip_feed_forward(self, x: Any) -> Any:
        return self._ff_block(self.norm2(x))


class ToyModel(HostModel):
    def preprocess(self, picture: Any) -> Any:
        return torch.rand(3, 64, 64)

    def tokenize(self, texts: Any) -> Any:
        return torch.tensor([[*text.encode()] for text in texts])

    def example_batch(self, batch: int) -> Any:
        return torch.rand(batch, 3, 64, 64), torch.randint(256, (batch, 9))

    def encode_image(self, images: Any) -> Any:
        return self.model(images)

    def encode_text(self, tokens: Any) -> Any:
        return self.model.text(tokens)

    def loss(self, images: Any, tokens: Any) -> Any:
        return (self.encode_image(images) - self.encode_text(tokens)).square().mean()


class ToyHost(Host):
    name = distribution = "toy"
    module, install = __name__.partition(".")[0], "pip install toy"

    def register(self) -> None: ...

    def names(self) -> Any:
        return {"elip-toy": ModelName("elip-toy", "toy", "toy")}

    def find(self, name: str) -> ModelName | None:
        return self.names().get("elip-" + name.removeprefix("elip-"))

    def describe(self, module: Any) -> Description:
        parts = {nn.TransformerEncoderLayer: PrunableLayer}
        return Description(module, Tower(module, "blocks", parts, num_patches=64, width=32))

    def text_guide(self, module: Any, features: Any) -> Any:
        return features @ module.head.weight

    def create(self, name: str, *, config: Any = None, device: str = "cpu", **options: Any) -> Any:
        model = Clip().to(device).eval()
        elip_plugin.apply(model, config or "fast")
        return ToyModel("toy", model, (8, 8), (0.0,) * 3, (1.0,) * 3)


HOST = ToyModel.host = ToyHost()


def test_a_host_of_another_package(tmp_path: Any) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with installed_package(tmp_path, "toy", "elip_plugin.hosts", f"{__name__}:HOST"):
        assert "toy 1.5: 1 models" in elip("models --host toy")
        assert "65 tokens of width 32" in elip("plan --model elip-toy")
        assert "tome" in elip(
            "bench speed --model toy --variants full,tome --rounds 1 --passes tower --device cpu"
        )
        elip(f"show --model toy --image {tmp_path} --text hi -o {tmp_path / 'a.html'}")
        assert "57 of 64 patches kept" in (tmp_path / "a.html").read_text()
        model, images = Clip(), torch.rand(2, 3, 64, 64)
        unpruned = model(images)
        with (handle := elip_plugin.apply(model, "fast")).guide(torch.randn(2, 16)):
            assert not torch.equal(model(images), unpruned)
        handle.remove()
        assert type(model.blocks) is nn.Sequential and torch.equal(model(images), unpruned)
