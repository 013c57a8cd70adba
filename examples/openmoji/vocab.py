"""A small WordPiece vocabulary made from captions, which `transformers.BertTokenizer` reads.

With it BERT towers train without the vocabulary of bert-base-uncased, hence without a download.
"""

from __future__ import annotations

import string
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from elip_plugin.files import replacing, writable

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # [PAD] is 0, as in BERT's configs
MAX_TOKENS = 30_522  # bert-base-uncased has as many: the tokens fit an unchanged BERT config
# In every vocabulary, for prompts ("a picture of ") and for captions not seen here.
_ASCII = string.ascii_lowercase + string.digits + string.punctuation


def make_vocab(captions: Iterable[str]) -> list[str]:
    """Build a vocabulary: special tokens, characters, "##" pieces, words by their frequency."""
    # Split by blanks first: each distinct word is then normalized once.
    raw = Counter(word for caption in captions for word in caption.split())
    words: Counter[str] = Counter()
    for text, count in raw.items():
        for word in _basic_tokens(text):
            words[word] += count
    chars = sorted(set(_ASCII).union(*words))
    tokens = [*SPECIAL, *chars, *(f"##{char}" for char in chars)]
    longer = sorted((word for word in words if len(word) > 1), key=lambda w: (-words[w], w))
    return tokens + longer[: max(0, MAX_TOKENS - len(tokens))]


def vocab_bytes(captions: Iterable[str]) -> bytes:
    """Return a vocabulary file, one token a line; the same captions give the same bytes."""
    return ("\n".join(make_vocab(captions)) + "\n").encode()


def write_vocab(captions: Iterable[str], path: Path) -> int:
    """Write the vocabulary file of captions."""
    content = vocab_bytes(captions)
    with writable(path), replacing(path) as unfinished:
        unfinished.write_bytes(content)
    return content.count(b"\n")


def _basic_tokens(text: str) -> list[str]:
    """Lower the case, strip accents and cut out punctuation and ideographs, as BERT does."""
    spaced = []
    for char in unicodedata.normalize("NFD", text.lower()):
        category = unicodedata.category(char)
        if category[0] == "C" or category == "Mn" or char == "\N{REPLACEMENT CHARACTER}":
            continue
        ideograph = unicodedata.name(char, "").startswith("CJK UNIFIED")
        alone = char in string.punctuation or category[0] == "P" or ideograph
        spaced.append(f" {char} " if alone else char)
    return "".join(spaced).split()
