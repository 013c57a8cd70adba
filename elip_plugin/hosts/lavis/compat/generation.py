"""Caption and answer generation of LAVIS' decoder, independent of transformers' generation.

This is the beam search of LAVIS' own pin, transformers 4.26, for the calls that LAVIS makes:
equal weights give equal tokens. Differs from transformers 4.27 and later:

- image tokens are not repeated for the beams, as LAVIS has done so already;
- a text's score is divided by its length with the prompt.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, TopKLogitsWarper, TopPLogitsWarper

TOP_K = 50
"""Sampling draws from this many tokens at most: the default of transformers 4.26."""


def tie_weights(self: Any) -> None:
    """Give both names of a language head's bias one parameter."""
    self.decoder.bias = self.bias


@torch.no_grad()
def generate(
    self: Any,
    input_ids: Tensor,
    *,
    max_length: int,
    min_length: int,
    eos_token_id: int,
    pad_token_id: int,
    num_beams: int = 1,
    do_sample: bool = False,
    top_p: float = 1.0,
    num_return_sequences: int = 1,
    repetition_penalty: float = 1.0,
    **encoded: Tensor,
) -> Tensor:
    """Continue prompts [B, L] by beam search, greedily (one beam) or by sampling (one beam).

    Lengths include the prompt. `encoded` is `encoder_hidden_states` [B * num_beams, N, D] with
    their mask; the other arguments are those of transformers, of which LAVIS needs no more.
    """
    if num_return_sequences != 1 or (do_sample and num_beams != 1):
        raise ValueError("this generates one text per prompt, and samples with one beam only")
    ids = input_ids.repeat_interleave(num_beams, dim=0)
    decoder = _Decoder(
        self, ids.ne(pad_token_id).long(), encoded, repetition_penalty, min_length, eos_token_id
    )
    if num_beams > 1:
        return _beam_search(decoder, ids, num_beams, max_length, pad_token_id)
    warpers = LogitsProcessorList()
    if do_sample:
        warpers.append(TopKLogitsWarper(TOP_K))
        if top_p < 1:
            warpers.append(TopPLogitsWarper(top_p))
    ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    while not ended.all() and ids.shape[1] < max_length:
        scores = warpers(ids, decoder.logits(ids))
        token = scores.argmax(dim=-1)
        if do_sample:
            token = torch.multinomial(scores.softmax(dim=-1), num_samples=1).squeeze(1)
        token = token.masked_fill(ended, pad_token_id)
        ids = torch.cat([ids, token[:, None]], dim=1)
        ended |= token == eos_token_id
    return ids


class _Decoder:
    """Scores the next token of each text; keeps the cache and the mask as texts grow."""

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

    def logits(self, ids: Tensor, log_softmax: bool = False) -> Tensor:
        """Compute logits, or log probabilities, of the token after texts [B, L]."""
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
            old, penalty = scores.gather(1, ids), self.repetition_penalty
            scores = scores.scatter(1, ids, torch.where(old < 0, old * penalty, old / penalty))
        if ids.shape[1] < self.min_length:
            scores[:, self.eos] = -torch.inf
        return scores

    def reorder(self, rows: Tensor) -> None:
        """Continue with copies of these rows; the prompts' masks are equal among beams."""
        self.past = self.model._reorder_cache(self.past, rows)


def _beam_search(decoder: _Decoder, ids: Tensor, beams: int, max_length: int, pad: int) -> Tensor:
    prompts = [_Hypotheses(beams) for _ in range(len(ids) // beams)]
    # A text's beams start equal: only the first one takes part in the first step.
    totals = torch.zeros(len(prompts), beams, device=ids.device)
    totals[:, 1:] = -1e9
    while True:
        scores = decoder.logits(ids, log_softmax=True) + totals.view(-1, 1)
        vocabulary = scores.shape[1]
        # Twice the beams, so that enough are left should all of them end.
        best = scores.view(len(prompts), -1).topk(2 * beams, dim=1)
        kept: list[tuple[float, int, int]] = []
        for b, prompt in enumerate(prompts):
            first = b * beams
            candidates = [
                (score, first + index // vocabulary, index % vocabulary)
                for score, index in zip(best.values[b].tolist(), best.indices[b].tolist())
            ]
            kept += prompt.step(candidates, ids, decoder.eos) or [(0.0, first, pad)] * beams
        sums, rows, tokens = zip(*kept)
        totals, order = totals.new_tensor(sums).view_as(totals), ids.new_tensor(rows)
        ids = torch.cat([ids[order], ids.new_tensor(tokens)[:, None]], dim=1)
        if all(prompt.done for prompt in prompts) or ids.shape[1] >= max_length:
            break
        decoder.reorder(order)

    for b, prompt in enumerate(prompts):
        if not prompt.done:
            for score, text in zip(totals[b].tolist(), ids[b * beams : (b + 1) * beams]):
                prompt.add(text, score)
    texts = [prompt.ended[0][1] for prompt in prompts]
    length = min(max(map(len, texts)) + 1, max_length)
    out = ids.new_full((len(texts), length), pad)
    for row, text in zip(out, texts):
        row[: len(text)] = text
        row[len(text) : len(text) + 1] = decoder.eos
    return out


class _Hypotheses:
    """Ended texts of one prompt, best first by log probability over length, prompt included."""

    def __init__(self, beams: int) -> None:
        self.beams = beams
        self.ended: list[tuple[float, Tensor]] = []
        self.done = False

    def step(
        self, candidates: list[tuple[float, int, int]], ids: Tensor, eos: int
    ) -> list[tuple[float, int, int]]:
        """Sort candidates (score, row, token), best first; return those to continue with."""
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
            self.done = self.ended[-1][0] >= candidates[0][0] / ids.shape[1]
        return going

    def add(self, text: Tensor, score: float) -> None:
        """Keep an ended text, without its end token, if it is among the best."""
        self.ended.append((score / len(text), text))
        self.ended = sorted(self.ended, key=lambda pair: pair[0], reverse=True)[: self.beams]
