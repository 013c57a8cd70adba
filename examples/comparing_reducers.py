"""ELIP beside EViT, ToMe and random dropping: the same weights, the same plan.

python examples/comparing_reducers.py
"""

from __future__ import annotations

import copy

import open_clip
import torch

import elip_plugin


def main() -> None:
    """Encode the same images in each way."""
    torch.manual_seed(0)
    base = open_clip.create_model("ViT-B-32").eval()
    images = torch.randn(4, 3, 224, 224)
    with torch.no_grad():
        whole = base.encode_image(images)
    print("reducer  tokens inside the blocks, and the cosine to the features of all tokens")
    for reducer in ("elip", "evit", "tome", "random"):
        model = copy.deepcopy(base)
        config = {"preset": "fast", "reducer": reducer, "text_weight": 0.0, "eval_mode": "image"}
        handle = elip_plugin.apply(model, config)
        with torch.no_grad():
            features = model.encode_image(images)
        tokens = " ".join(map(str, handle.plan.tokens))
        print(f"{reducer:8} {tokens}  {torch.cosine_similarity(whole, features).mean():.3f}")


if __name__ == "__main__":
    main()
