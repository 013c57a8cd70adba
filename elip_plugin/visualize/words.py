"""What a picture says, in words: for titles, and for readers who do not see it."""

from __future__ import annotations

from elip_plugin.visualize.look import Look, Row, StageView


def column_titles(look: Look) -> list[str]:
    """Name the columns.

    Args:
        look: What to draw.

    Returns:
        One title for the whole picture, then one per stage.
    """
    stages = look.rows[0].stages if look.rows else ()
    return ["as the model sees it", *(f"before block {stage.block}" for stage in stages)]


def row_title(look: Look, row: Row) -> str:
    """Name a row.

    Args:
        look: What to draw.
        row: One of its rows.

    Returns:
        The text that guided, or that none did; with the picture's name where there are several,
        and how much the text changed.
    """
    title = "the image alone" if row.text is None else f"“{row.text}”"
    if len(look.pictures) > 1:
        title = f"{look.pictures[row.picture][0]}: {title}"
    if row.differing is not None:
        patches = "patch" if row.differing == 1 else "patches"
        title += f" ({row.differing} {patches} kept at the end that the first row lost)"
    return title


def stage_words(stage: StageView, patches: int) -> str:
    """Tell what is left after a stage.

    Args:
        stage: The stage.
        patches: Patches N of the picture.

    Returns:
        Counts of the patches kept, merged now or earlier, and dropped.
    """
    parts = [f"{len(stage.kept)} of {patches} patches kept"]
    if stage.merged:
        parts.append(f"{len(stage.merged)} in one merged token")
    if stage.earlier:
        parts.append(f"{len(stage.earlier)} in an earlier one")
    if stage.gone:
        parts.append(f"{len(stage.gone)} dropped")
    return ", ".join(parts)
