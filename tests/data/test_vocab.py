"""The vocabulary of captions: BERT's tokenizer reads it, and knows every word it is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from examples.openmoji import vocab
from examples.openmoji.vocab import SPECIAL, make_vocab, write_vocab

CAPTIONS = [
    "An emoji of a cat, and a cat.",
    "flag: Côte d'Ivoire & São\u00a0Tomé—Curaçao «ō»",
    "İstanbul ŞIŞLI straße ΑΘΗΝΆ 日本語の犬 한국어 नमस्ते",
    "soft\u00adhyphen zero\u200dwidth tab\tbreak\nline re\ufffdplaced \x07 ✔️ 🐈",
]


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    write_vocab(CAPTIONS, tmp_path / "vocab.txt")
    return transformers.BertTokenizer(str(tmp_path / "vocab.txt"))


def test_order_of_the_tokens() -> None:
    tokens = make_vocab(["dog Cat", "cat's", "DOG", "dog é"])
    assert tuple(tokens[:5]) == SPECIAL
    assert tokens[0] == "[PAD]"
    assert len(set(tokens)) == len(tokens)
    assert tokens[-2:] == ["dog", "cat"]
    chars = [token for token in tokens[5:-2] if not (len(token) == 3 and token[:2] == "##")]
    assert chars == sorted(chars)
    assert [f"##{char}" for char in chars] == tokens[5 + len(chars) : -2]
    assert {"a", "z", "0", "&", "e"} <= set(chars)


def test_only_words_are_left_out_of_a_full_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make_vocab(CAPTIONS)
    monkeypatch.setattr(vocab, "MAX_TOKENS", len(whole) - 2)
    assert make_vocab(CAPTIONS) == whole[:-2]
    monkeypatch.setattr(vocab, "MAX_TOKENS", 7)
    shortest = make_vocab(CAPTIONS)
    assert shortest == whole[: len(shortest)]
    assert shortest[-1].startswith("##")
    monkeypatch.setattr(vocab, "MAX_TOKENS", len(shortest) - 1)
    assert make_vocab(CAPTIONS) == shortest
    assert "日" in shortest
    assert "##z" in shortest


def test_the_same_captions_give_the_same_bytes(tmp_path: Path) -> None:
    write_vocab(CAPTIONS, tmp_path / "a")
    write_vocab(CAPTIONS[::-1], tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_bert_reads_the_special_tokens(tokenizer: Any) -> None:
    names = [f"{name}_token_id" for name in ("pad", "unk", "cls", "sep", "mask")]
    assert [getattr(tokenizer, name) for name in names] == [0, 1, 2, 3, 4]


def test_words_of_the_captions_are_one_token_each(tokenizer: Any) -> None:
    """So our way of cutting captions into words is BERT's."""
    pieces = [piece for caption in CAPTIONS for piece in tokenizer.tokenize(caption)]
    assert not [piece for piece in pieces if piece.startswith("##") or piece == "[UNK]"]
    words = {token for token in make_vocab(CAPTIONS)[5:] if len(token.removeprefix("##")) > 1}
    assert words
    assert words <= set(pieces)


@pytest.mark.parametrize(
    "caption",
    [
        "taco",
        "a picture of 7 quizzes: (x+y)^2 = `~z` | {w} <v> @u #t \\ $s",
        "語犬本の日",
        "Straßenbahn, İ São ŞAŞ ΘΝΗ",
        "स्तेनम",
    ],
)
def test_other_captions_have_no_unknown_token(tokenizer: Any, caption: str) -> None:
    assert "[UNK]" not in tokenizer.tokenize(caption)
    assert "[UNK]" in tokenizer.tokenize("ж")
