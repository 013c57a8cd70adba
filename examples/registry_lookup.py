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

    found = elip_plugin.get(name)
    print(f"{found.name} prunes {found.base} of {found.host}")
    model = found.create()
    handle = elip_plugin.find_handle(model)
    print(handle.plan.summary())

    images, texts = torch.randn(2, 3, 224, 224), torch.randint(1, 400, (2, 77))
    with torch.no_grad():
        pruned = model.train()(images, texts)[0]
        with handle.disabled():
            whole = model(images, texts)[0]
        handle.remove()
        assert torch.equal(model(images, texts)[0], whole)
    similarity = torch.cosine_similarity(pruned, whole).mean()
    print(f"cosine of pruned and whole image features, random weights: {similarity:.3f}")


if __name__ == "__main__":
    main()
