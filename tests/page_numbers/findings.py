"""What docs/findings.md says by the logs."""

from __future__ import annotations

from collections.abc import Iterator

from page_numbers.logs import answered, asked, bare, said


def sentences() -> Iterator[str]:
    merging = asked("Does merging by ToMe"), answered("Does merging by ToMe")
    assert {found.seeds for found in merging} == {8}
    yield (
        f"ahead of a random half of the patches by {bare(merging[0])} on emojis and by "
        f"{bare(merging[1])} on photographs (8 seeds each)."
    )
    attention = asked("Does the class token's attention")
    text = asked("Does the text choose better than chance")
    yield (
        f"the class token's attention {said(attention)}, the text {said(text)} (emojis, "
        f"{text.seeds} seeds)"
    )
    trained = "Trained with ToMe"
    unpruned = "After unpruned training: does half of the token-layers at test time, by ToMe"
    found = [ask(text) for ask in (asked, answered) for text in (trained, unpruned)]
    assert {each.seeds for each in found} == {8}
    yield (
        f"{said(found[0])} points of MRR after training with `half`, {said(found[1])} after "
        f"unpruned training; of top-1 {said(found[2])} and {said(found[3])} (8 seeds each)"
    )
