"""Caption and answer generation of LAVIS' decoder, independent of transformers' generation.

From transformers 4.27 on, `generate` repeats the image embeddings that LAVIS has repeated
already and hands its decoder caches it does not know; from 4.50 on models do not inherit it
at all. Its beam search also changed: the length that scores are divided by leaves out the
prompt now, which chooses other captions. So this is the search of LAVIS' own pin,
transformers 4.26, for the calls that LAVIS makes; equal weights give equal tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, TopKLogitsWarper, TopPLogitsWarper

TOP_K = 50
"""Sampling draws from this many tokens at most: the default of transformers 4.26."""


def mend_generation() -> None:
    """Give LAVIS' text decoder, hence BLIP's captions and answers, this module's `generate`.

    For transformers 4.27 and later, after `import lavis`. Safe to repeat.
    """
    from lavis.models.med import BertLMHeadModel

    BertLMHeadModel.generate = generate


@torch.no_grad()
def generate(
    self: Any,
    input_ids: Tensor,
    *,
    max_length: int,
    min_length: int,
    eos_token_id: int,
    pad_token_id: int,
    encoder_hidden_states: Tensor,
    encoder_attention_mask: Tensor,
    num_beams: int = 1,
    do_sample: bool = False,
    top_p: float = 1.0,
    num_return_sequences: int = 1,
    repetition_penalty: float = 1.0,
) -> Tensor:
    """Continue prompts by beam search, greedily (one beam) or by sampling.

    Args:
        self: A LAVIS `BertLMHeadModel`.
        input_ids: Prompts [B, L].
        max_length: Length to stop at, prompt included.
        min_length: Length below which no text ends, prompt included.
        eos_token_id: The token that ends a text.
        pad_token_id: The token that fills up after it.
        encoder_hidden_states: What the decoder looks at [B * num_beams, N, D]; LAVIS itself
            repeats it for the beams.
        encoder_attention_mask: Its mask [B * num_beams, N].
        num_beams: Texts kept at each step.
        do_sample: Draw the tokens; with one beam.
        top_p: Draw from the likeliest tokens that together are this probable.
        num_return_sequences: 1; LAVIS passes it.
        repetition_penalty: Divides the scores of tokens that occurred.

    Returns:
        Prompts with their continuations [B, max_length or less].

    Raises:
        ValueError: For what LAVIS never asks for: several texts, or beams while sampling.
    """
    if num_return_sequences != 1 or (do_sample and num_beams != 1):
        raise ValueError("this generates one text per prompt, and samples with one beam only")
    decoder = _Decoder(
        self,
        input_ids.repeat_interleave(num_beams, dim=0).ne(pad_token_id).long(),
        {
            "encoder_hidden_states": encoder_hidden_states,
            "encoder_attention_mask": encoder_attention_mask,
        },
        repetition_penalty,
        min_length,
        eos_token_id,
    )
    if num_beams > 1:
        return _beam_search(decoder, input_ids, num_beams, max_length, pad_token_id)
    warpers = LogitsProcessorList()
    if do_sample:
        warpers.append(TopKLogitsWarper(TOP_K))
        if top_p < 1:
            warpers.append(TopPLogitsWarper(top_p))
    return _one_by_one(decoder, input_ids, warpers, do_sample, max_length, pad_token_id)


class _Decoder:
    """Scores the next token of each text, keeping the cache and the mask as texts grow."""

    def __init__(
        self,
        model: Any,
        mask: Tensor,
        encoded: dict[str, Tensor],
        repetition_penalty: float,
        min_length: int,
        eos: int,
    ) -> None:
        self.model, self.mask, self.encoded = model, mask, encoded
        self.repetition_penalty, self.min_length, self.eos = repetition_penalty, min_length, eos
        self.past: Any = None

    def next_scores(self, ids: Tensor, log_softmax: bool) -> Tensor:
        """Score all tokens as the next one of the texts `ids`: logits or log probabilities."""
        output = self.model(
            ids if self.past is None else ids[:, -1:],
            attention_mask=self.mask,
            past_key_values=self.past,
            use_cache=True,
            return_dict=True,
            **self.encoded,
        )
        self.past = output.past_key_values
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(ids), 1)], dim=1)
        scores: Tensor = output.logits[:, -1]
        if log_softmax:
            scores = scores.log_softmax(dim=-1)
        if self.repetition_penalty != 1:
            seen = scores.gather(1, ids)
            lowered = seen / self.repetition_penalty
            scores = scores.scatter(
                1, ids, torch.where(seen < 0, seen * self.repetition_penalty, lowered)
            )
        if ids.shape[1] < self.min_length:
            scores[:, self.eos] = -torch.inf
        return scores

    def reorder(self, rows: Tensor) -> None:
        """Go on with copies of these rows; the prompts' masks are equal among beams."""
        self.past = self.model._reorder_cache(self.past, rows)


def _one_by_one(
    decoder: _Decoder,
    ids: Tensor,
    warpers: Any,
    do_sample: bool,
    max_length: int,
    pad: int,
) -> Tensor:
    finished = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    while True:
        scores = warpers(ids, decoder.next_scores(ids, log_softmax=False))
        if do_sample:
            token = torch.multinomial(scores.softmax(dim=-1), num_samples=1).squeeze(1)
        else:
            token = scores.argmax(dim=-1)
        token = token.masked_fill(finished, pad)
        ids = torch.cat([ids, token[:, None]], dim=1)
        finished |= token == decoder.eos
        if finished.all() or ids.shape[1] >= max_length:
            return ids


def _beam_search(
    decoder: _Decoder, prompts: Tensor, beams: int, max_length: int, pad: int
) -> Tensor:
    batch = len(prompts)
    ids = prompts.repeat_interleave(beams, dim=0)
    searches = [_Search(beams) for _ in range(batch)]
    # A text's beams start equal: only the first one takes part in the first step.
    totals = torch.zeros(batch, beams, device=ids.device)
    totals[:, 1:] = -1e9
    while True:
        scores = decoder.next_scores(ids, log_softmax=True) + totals.view(-1, 1)
        vocabulary = scores.shape[1]
        # Twice the beams, so that enough are left should all of them end.
        best = scores.view(batch, -1).topk(2 * beams, dim=1)
        rows, tokens = [], []
        for b, search in enumerate(searches):
            first = b * beams
            candidates = [
                (score, first + index // vocabulary, index % vocabulary)
                for score, index in zip(best.values[b].tolist(), best.indices[b].tolist())
            ]
            kept = search.step(candidates, ids, decoder.eos) or [(0.0, first, pad)] * beams
            totals[b] = totals.new_tensor([score for score, _, _ in kept])
            rows += [row for _, row, _ in kept]
            tokens += [token for _, _, token in kept]
        order = torch.tensor(rows, device=ids.device)
        ids = torch.cat([ids[order], ids.new_tensor(tokens)[:, None]], dim=1)
        if all(search.done for search in searches) or ids.shape[1] >= max_length:
            break
        decoder.reorder(order)

    for b, search in enumerate(searches):
        if not search.done:
            for score, text in zip(totals[b].tolist(), ids[b * beams : (b + 1) * beams]):
                search.add(text, score)
    texts = [search.ended[0][1] for search in searches]
    length = min(max(map(len, texts)) + 1, max_length)
    out = prompts.new_full((batch, length), pad)
    for row, text in zip(out, texts):
        row[: len(text)] = text
        if len(text) < length:
            row[len(text)] = decoder.eos
    return out


class _Search:
    """Ended texts of one prompt, best first by log probability over length, prompt included."""

    def __init__(self, beams: int) -> None:
        self.beams = beams
        self.ended: list[tuple[float, Tensor]] = []
        self.done = False

    def step(
        self, candidates: list[tuple[float, int, int]], ids: Tensor, eos: int
    ) -> list[tuple[float, int, int]]:
        """Take the best (score, row, token), best first; return those to go on with."""
        if self.done:
            return []
        going = []
        for rank, (score, row, token) in enumerate(candidates):
            if token != eos:
                going.append((score, row, token))
            elif rank < self.beams:
                self.add(ids[row], score)
            if len(going) == self.beams:
                break
        if len(self.ended) == self.beams:
            worst = self.ended[-1][0]
            self.done = worst >= candidates[0][0] / ids.shape[1]
        return going

    def add(self, text: Tensor, score: float) -> None:
        """Keep an ended text, without its end token, if it is among the best."""
        self.ended.append((score / len(text), text))
        self.ended = sorted(self.ended, key=lambda pair: pair[0], reverse=True)[: self.beams]
