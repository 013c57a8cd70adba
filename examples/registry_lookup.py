"""Find a pruned model by name, look at its plan, and undo the pruning.

python examples/registry_lookup.py elip-half-ViT-B-32
"""

from __future__ import annotations

import sys

import torch

import elip_plugin


def main() -> None:
    """Look a model up."""
    name = sys.argv[1] if len(sys.argv) > 1 else "elip-half-ViT-B-32"
    names = elip_plugin.list_models("open_clip")
    print(f"{len(names)} pruned models, such as {', '.join(names[:3])}")

    made = elip_plugin.create(name)
    print(f"{name} prunes {made.name} of {made.host.name}")
    model = made.model
    handle = elip_plugin.find_handle(model)
    print(handle.plan.summary())

    images, texts = made.example_batch(2)
    with torch.no_grad():
        pruned = model.train()(images, texts)["image_features"]
        with handle.disabled():
            whole = model(images, texts)["image_features"]
        handle.remove()
        assert torch.equal(model(images, texts)["image_features"], whole)
    similarity = torch.cosine_similarity(pruned, whole).mean()
    print(f"cosine of pruned and whole image features, random weights: {similarity:.3f}")


if __name__ == "__main__":
    main()
