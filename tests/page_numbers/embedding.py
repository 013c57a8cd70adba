"""What docs/embedding.md says by the log of docs/pretrained.md."""

from __future__ import annotations

from collections.abc import Iterator

from page_numbers.pretrained import lost, row, stay


def sentences() -> Iterator[str]:
    by_class, both = lost("ward", 0.7, "cls"), lost("ward", 0.7)
    full = [100 * row("ward", 0.7)[kind]["t2i R@1"]["unpruned"] for kind in ("cls", "both")]
    yield (
        f"On DINOv2 ViT-S/14 `embed` runs 0.7 of the operations and loses {by_class} points of "
        f"{full[0]:.1f}% of R@1 (captions that find their photograph first) by the class token, "
        f"and {both} of {full[1]:.1f}% with the mean of the patches beside it; "
        f"{stay('ward', 0.7)} of ten neighbors stay."
    )
    small = row("smaller picture", 0.7)
    yield (
        f"A smaller picture ({small['picture']} px, {small['cost']:.2f} of the operations) keeps "
        f"{stay('smaller picture', 0.7)} of them."
    )
    yield f"At half of the operations {lost('ward', 0.5)} points are lost"


NO_LOG = (
    "with Ray 2.60",
    "took 0.84 of unpruned in torch, 0.66 in ONNX Runtime, 0.87 in OpenVINO",  # benchmarks.machine
    "which adds about 0.03",
)
