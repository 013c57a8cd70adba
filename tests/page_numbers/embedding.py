"""What docs/embedding.md says by the logs."""

from __future__ import annotations

from collections.abc import Iterator

from page_numbers.logs import answered, asked, bare, said


def sentences() -> Iterator[str]:
    trained, unpruned = asked("Trained with ToMe"), "After unpruned training"
    yield f"({said(trained)} points of MRR from scratch, {trained.seeds} seeds)"
    yield (
        f"{bare(asked(unpruned))} and {bare(asked(unpruned, 'continued'))} points after unpruned "
        "training (from scratch and continued)."
    )
    after_half, after_unpruned, attention = map(
        answered,
        (
            "Trained with ToMe",
            "After unpruned training: does half of the token-layers at test time, by ToMe",
            "After unpruned training: does half of the token-layers by ToMe score as half by the",
        ),
    )
    assert {after_half.seeds, after_unpruned.seeds, attention.seeds} == {8}
    yield (
        f"{bare(after_half)} after `half`, {bare(after_unpruned)} after unpruned training (8 seeds "
        f"each); by the class token's attention {bare(attention)} more."
    )


NO_LOG = ("with Ray 2.60",)
