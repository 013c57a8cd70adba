"""A small WordPiece vocabulary made from captions, which `transformers.BertTokenizer` reads.

With it BERT towers train without the vocabulary of bert-base-uncased, hence without a download.
"""

from __future__ import annotations

import string
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from elip_plugin.data.pairs import captions_in
from elip_plugin.errors import DataError

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # [PAD] is 0, as in BERT's configs
MAX_TOKENS = 30_522  # bert-base-uncased has as many: the tokens fit an unchanged BERT config
# In every vocabulary, for prompts ("a picture of ") and for captions not seen here.
_ASCII = string.ascii_lowercase + string.digits + string.punctuation


def make_vocab(captions: Iterable[str]) -> list[str]:
    """Make a vocabulary that splits these captions without [UNK].

    Other captions get no [UNK] either, as long as their characters are ASCII or occur here
    and no word has more than BERT's 100 characters.

    Args:
        captions: The captions, for an uncased tokenizer.

    Returns:
        The special tokens, all characters, these as "##" pieces, and the words, most frequent
        first. Only words are left out to stay below `MAX_TOKENS`.
    """
    # Split by blanks first: each distinct word is then normalised once.
    raw = Counter(word for caption in captions for word in caption.split())
    words: Counter[str] = Counter()
    for text, count in raw.items():
        for word in _basic_tokens(text):
            words[word] += count
    chars = sorted(set(_ASCII).union(*words))
    tokens = [*SPECIAL, *chars, *(f"##{char}" for char in chars)]
    longer = sorted((word for word in words if len(word) > 1), key=lambda w: (-words[w], w))
    return tokens + longer[: max(0, MAX_TOKENS - len(tokens))]


def write_vocab(captions: Iterable[str], path: Path) -> int:
    """Write a vocabulary, one token a line; the same captions give the same bytes.

    Args:
        captions: The captions.
        path: File to write.

    Returns:
        The number of tokens.
    """
    tokens = make_vocab(captions)
    path.write_bytes(("\n".join(tokens) + "\n").encode())
    return len(tokens)


def vocab_from_lists(
    lists: Iterable[Path], out: Path, *, overwrite: bool = False
) -> tuple[int, int]:
    """Write the vocabulary of the captions in JSON lists of pairs.

    Args:
        lists: The lists; an entry's "caption" is a string or a list of strings.
        out: File to write.
        overwrite: Whether `out` may be replaced.

    Returns:
        The number of captions and of tokens.

    Raises:
        DataError: If a list cannot be read, or `out` exists or cannot be written.
    """
    if out.exists() and not overwrite:
        raise DataError(f"{out} exists: name another file or pass --overwrite.")
    captions = [caption for path in lists for caption in captions_in(path)]
    try:
        return len(captions), write_vocab(captions, out)
    except OSError as error:
        raise DataError(
            f"{out} cannot be written ({error.strerror}): name another file."
        ) from error


def _basic_tokens(text: str) -> list[str]:
    """Lower the case, strip accents and cut out punctuation and ideographs, as BERT does."""
    spaced = []
    for char in unicodedata.normalize("NFD", text.lower()):
        category = unicodedata.category(char)
        if category[0] == "C" or category == "Mn" or char == "\N{REPLACEMENT CHARACTER}":
            continue
        alone = char in string.punctuation or category[0] == "P" or _is_ideograph(char)
        spaced.append(f" {char} " if alone else char)
    return "".join(spaced).split()


def _is_ideograph(char: str) -> bool:
    return unicodedata.name(char, "").startswith("CJK UNIFIED")
