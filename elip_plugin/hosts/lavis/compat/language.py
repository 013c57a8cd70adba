"""LAVIS' language heads beside newer versions of transformers."""

from __future__ import annotations

from typing import Any, NoReturn

from elip_plugin.errors import UnsupportedModelError
from elip_plugin.hosts.versions import version_of


def tie_weights(self: Any) -> None:
    """Give both names of a language head's bias one parameter."""
    self.decoder.bias = self.bias


def generate(self: Any, *args: Any, **options: Any) -> NoReturn:
    """Refuse to write text: transformers repeats the image's tokens once more than LAVIS means."""
    raise UnsupportedModelError(
        f"LAVIS writes captions and answers with transformers below 4.27 alone, and "
        f"{version_of('transformers')} is installed: use LAVIS' own pins "
        "(pip install 'elip-plugin[lavis]', Python 3.10 or 3.11), or transformers' own BLIP "
        "(BlipForConditionalGeneration, BlipForQuestionAnswering), which elip_plugin.apply prunes"
    )
