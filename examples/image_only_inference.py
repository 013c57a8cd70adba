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

    handle = elip_plugin.apply(model, "embed")  # half of the token-layers, merged by ToMe
    with torch.no_grad():
        pruned = model.encode_image(images)
    print(f"tokens inside the blocks: {' '.join(map(str, handle.plan.tokens))}")
    print(f"pruned: {handle.plan.forward_cost(width=768):.2f} of the operations of all tokens")
    print(f"cosine to all tokens: {torch.cosine_similarity(whole, pruned).min():.3f} or more")


if __name__ == "__main__":
    main()
