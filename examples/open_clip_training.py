"""A training loop of your own with OpenCLIP's classes, pruned by the plan `half`.

    python examples/open_clip_training.py --steps 20

Nearly half of the token-layers is left out; in the last fifth of the training the model sees
all tokens again, and it ends as a plain OpenCLIP checkpoint.
"""

from __future__ import annotations

import argparse

import open_clip
import torch

import elip_plugin

SIZES = {
    "vision_cfg": {"image_size": 64, "patch_size": 8, "layers": 12, "width": 64, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}


def main() -> None:
    """Train for some steps on random pairs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10)
    steps = parser.parse_args().steps

    torch.manual_seed(0)
    model = open_clip.CLIP(embed_dim=64, **SIZES, output_dict=True)
    handle = elip_plugin.apply(model, {"preset": "half", "final_unpruned": 0.2})
    print(handle.plan.summary())

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loss_of = open_clip.ClipLoss()
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    images, texts = torch.randn(8, 3, 64, 64), tokenizer([f"picture {i}" for i in range(8)])
    model.train()
    for step in range(steps):
        handle.update_progress(step, steps)
        out = model(images, texts)
        loss = loss_of(**out)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step}: loss {loss.item():.3f}")

    handle.remove()
    open_clip.CLIP(embed_dim=64, **SIZES).load_state_dict(model.state_dict())
    print("the weights fit the plain model")


if __name__ == "__main__":
    main()
