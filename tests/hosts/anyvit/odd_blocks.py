"""A block of the usual parts in own code, and blocks that differ from it in one part each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, HEADS, DEPTH, SIDE, PATCH = 32, 2, 4, 32, 8
TOKENS = (SIDE // PATCH) ** 2 + 1


class Block(nn.Module):
    """x + out(attention(norm(x))), and of that y + mlp(norm(y)); its parts have own names."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.three, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.grow = nn.Sequential(nn.Linear(WIDTH, 64), nn.GELU(), nn.Linear(64, WIDTH))

    def split(self, x: Tensor) -> Any:
        return self.three(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)

    def attend(self, x: Tensor) -> Any:
        return self.out(self.mix(*self.split(x)).transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Any:
        x = x + self.attend(self.before(x))
        return x + self.grow(self.between(x))


class PostNorm(Block):
    def forward(self, x: Tensor) -> Any:
        x = self.before(x + self.attend(x))
        return self.between(x + self.grow(x))


class NormOfWhatIsAdded(Block):
    def forward(self, x: Tensor) -> Any:
        x = x + self.before(self.attend(x))
        return x + self.between(self.grow(x))


class OtherScale(Block):
    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, scale=WIDTH**-0.5)


class Parallel(Block):
    def forward(self, x: Tensor) -> Any:
        return x + self.attend(self.before(x)) + self.grow(self.between(x))


class ParallelOfOneNorm(Block):
    def forward(self, x: Tensor) -> Any:
        y = self.before(x)
        return x + self.attend(y) + self.grow(y)


class Rotary(Block):
    def turn(self, x: Tensor) -> Tensor:
        angles = torch.arange(x.shape[2], dtype=x.dtype)[:, None] * torch.tensor([1.0, 0.1])
        angles = angles.repeat_interleave(x.shape[3] // 2, dim=1)
        a, b = x.chunk(2, dim=3)
        return x * angles.cos() + torch.cat([-b, a], dim=3) * angles.sin()

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return super().mix(self.turn(q), self.turn(k), v)


class BiasByDistance(Block):
    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        places = torch.arange(q.shape[2], dtype=q.dtype)
        bias = -(places[:, None] - places).abs()
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


class BiasTable(Block):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(HEADS, TOKENS, TOKENS))

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.table)


class Causal(Block):
    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class Windows(Block):
    """Attends within ten tokens, which more than a few random ones show."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        window = torch.arange(q.shape[2]) // 10
        return F.scaled_dot_product_attention(q, k, v, attn_mask=window[:, None] == window)


class Gated(Block):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Any:
        x = x + self.gate.tanh() * self.attend(self.before(x))
        return x + self.grow(self.between(x))


class GatedHeads(Block):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, WIDTH)

    def attend(self, x: Tensor) -> Any:
        mixed = self.mix(*self.split(x)).transpose(1, 2).flatten(2)
        return self.out(mixed * self.gate(x).sigmoid())


class Cosine(Block):
    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        return F.scaled_dot_product_attention(q, k, v, scale=10.0)


class SharedKeys(Block):
    def __init__(self) -> None:
        super().__init__()
        self.three, self.kv = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH // HEADS)

    def split(self, x: Tensor) -> Any:
        q = self.three(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        k, v = self.kv(x).unsqueeze(1).expand(-1, HEADS, -1, -1).chunk(2, dim=-1)
        return q, k, v


class HalfOfTheTokens(Block):
    def forward(self, x: Tensor) -> Any:
        x = 0.5 * x + self.attend(self.before(x))
        return x + self.grow(self.between(x))


class GatedMlp(Block):
    def forward(self, x: Tensor) -> Any:
        x = x + self.attend(self.before(x))
        return x + x.sigmoid() * self.grow(self.between(x))


class RandomInTraining(Block):
    def attend(self, x: Tensor) -> Any:
        return F.dropout(super().attend(x), 0.1, self.training)


class Vit(nn.Module):
    """A vision transformer of such blocks."""

    def __init__(self, make: Callable[[], nn.Module] = Block) -> None:
        super().__init__()
        self.patches, self.end = nn.Conv2d(3, WIDTH, PATCH, PATCH), nn.LayerNorm(WIDTH)
        self.first = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.places = nn.Parameter(torch.randn(1, TOKENS, WIDTH))
        self.stack = nn.ModuleList(make() for _ in range(DEPTH))

    def embed(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        return torch.cat([self.first.expand(len(x), -1, -1), x], dim=1) + self.places

    def run(self, x: Tensor) -> Tensor:
        for block in self.stack:
            x = block(x)
        return x

    def forward(self, images: Tensor) -> Any:
        return self.end(self.run(self.embed(images)))[:, 0]
