"""Cheaper image embeddings: pruned by the image alone, so that they can be kept.

python examples/image_only_inference.py
"""

from __future__ import annotations

import open_clip
import torch

import elip_plugin


def main() -> None:
    """Encode images with all tokens, and pruned."""
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-32").eval()
    images = torch.randn(4, 3, 224, 224)
    with torch.no_grad():
        whole = model.encode_image(images)

    # "fast": the paper's lookahead would cost more than it saves in a forward alone.
    handle = elip_plugin.apply(model, {"preset": "fast", "text_weight": 0.0, "eval_mode": "image"})
    with torch.no_grad(), handle.trace() as trace:
        pruned = model.encode_image(images)
    cost = handle.plan.forward_cost(width=768)
    print(f"pruned: {cost:.2f} of the operations that all tokens take")
    kept = trace.stages[-1].kept[0].tolist()
    print(f"first image: patches {kept} are left as tokens of their own")
    print(f"cosine to all tokens: {torch.cosine_similarity(whole, pruned).min():.3f} or more")


if __name__ == "__main__":
    main()
