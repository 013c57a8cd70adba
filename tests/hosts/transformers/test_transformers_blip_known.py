"""Known answers: transformers' BLIP gives what LAVIS' gives with the same weights."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import elip_plugin
from elip_plugin.reducers import FOR_QUESTIONS, reducers

pytest.importorskip("lavis")
hf = pytest.importorskip("transformers", minversion="4.57")

import lavis_family as family  # noqa: E402

TAUGHT = "similarity, taught"
CASES = [*reducers(), TAUGHT, "", "paper"]
"""All reducers, the default for questions, no pruning, and the paper's plan."""

ANSWERS = ["yes", "no", "a red dog", "two"]
PADDED = family.CAPTIONS
EQUAL = ["a red cat runs on", "the dog sits on it", "two blue cat is no", "what is this red dog"]
"""Questions of the same number of tokens: transformers' answer decoder attends to padding, too."""


def config_of(case: str) -> dict[str, Any]:
    """What both models are pruned by, by text at test time where the reducer reads one."""
    if case == TAUGHT:
        return {**FOR_QUESTIONS, "eval_mode": "text"}
    if case == "paper":
        return {"preset": case, "eval_mode": "text"}
    method = reducers()[case]
    preset = {} if "stages" in method.plan else {"preset": "fast"}
    how: dict[str, Any] = {"eval_mode": "text" if method.reads_text else "image"}
    if method.reads_text and not method.text_alone:
        how["text_weight"] = 0.9
    return {**preset, "reducer": case, **how}


def sizes(config: Any) -> dict[str, Any]:
    """The sizes of a text encoder of LAVIS, as transformers' config has them."""
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    names += ("vocab_size", "max_position_embeddings", "layer_norm_eps", "hidden_act")
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return {**{name: getattr(config, name) for name in names}, **still}


@torch.no_grad()
def converted(base: Any, kind: Any, **options: Any) -> Any:
    """A model of transformers with the weights of LAVIS'."""
    tokens = {
        f"{name}_token_id": getattr(base.tokenizer, f"{name}_token_id")
        for name in ("bos", "sep", "pad")
    }
    vision = {
        "hidden_size": 32, "num_hidden_layers": 12, "num_attention_heads": 2, "image_size": 64,
        "intermediate_size": 128, "patch_size": 16, "layer_norm_eps": 1e-6,
    }  # fmt: skip
    text = {**sizes(base.text_encoder.config), **tokens, "label_smoothing": 0.1}
    model = kind(hf.BlipConfig(text_config=text, vision_config=vision, **options)).train()
    words = base.text_encoder.embeddings.word_embeddings.weight
    # LAVIS' models have two first tokens, of a text alone and of one that reads an image;
    # transformers' models are given one.
    words[base.tokenizer.enc_token_id] = words[base.tokenizer.cls_token_id]
    tower, visual = model.vision_model, base.visual_encoder
    tower.embeddings.class_embedding.copy_(visual.cls_token)
    tower.embeddings.position_embedding.copy_(visual.pos_embed)
    parts = [
        (tower.embeddings.patch_embedding, visual.patch_embed.proj),
        (tower.post_layernorm, visual.norm),
    ]
    for layer, block in zip(tower.encoder.layers, visual.blocks, strict=True):
        parts += [
            (layer.layer_norm1, block.norm1),
            (layer.self_attn.qkv, block.attn.qkv),
            (layer.self_attn.projection, block.attn.proj),
            (layer.layer_norm2, block.norm2),
            (layer.mlp.fc1, block.mlp.fc1),
            (layer.mlp.fc2, block.mlp.fc2),
        ]
    for name in ("text_encoder", "text_decoder", "itm_head", "vision_proj", "text_proj"):
        if hasattr(model, name):
            parts.append((getattr(model, name), getattr(base, name)))
    for target, source in parts:
        given = dict(source.state_dict())
        found = target.load_state_dict(given, strict=False)
        assert not found.missing_keys and all("position_ids" in k for k in found.unexpected_keys)
    for block in visual.blocks:
        block.drop_path = torch.nn.Identity()  # which transformers' tower does not have
    # In float32 LAVIS' fused attention and transformers' round differently, which turns near ties.
    base.double()
    return model.double()


@contextmanager
def recorded(module: Any) -> Iterator[list[Any]]:
    """What a module returns."""
    made: list[Any] = []
    hook = module.register_forward_hook(lambda m, args, out: made.append(out))
    yield made
    hook.remove()


def kept_by(handle: Any, run: Any, *args: Any, **options: Any) -> tuple[Any, list[Tensor]]:
    """What a forward returns, and which tokens its stages keep."""
    torch.manual_seed(3)
    if handle is None:
        return run(*args, **options), []
    with handle.trace() as trace:
        return run(*args, **options), [stage.kept for stage in trace.stages]


def close(first: Tensor, second: Tensor) -> None:
    torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-9)


def samples() -> dict[str, Any]:
    """LAVIS' samples, with one answer to each question."""
    given = family.samples()
    one = {"n_answers": torch.ones(4, dtype=torch.long), "weight": torch.ones(4)}
    return {**given, **one, "image": given["image"].double(), "answer": ANSWERS}


def texts_of(base: Any, captions: list[str], first: int) -> dict[str, Tensor]:
    tokens = base.tokenizer(captions, padding="longest", return_tensors="pt")
    tokens.input_ids[:, 0] = first
    return {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask}


def pruned_pair(arch: str, kind: Any, case: str, **options: Any) -> tuple[Any, Any, Any, Any]:
    """LAVIS' model and transformers', and their handles."""
    base = family.stock(arch)
    model = converted(base, kind, **options)
    if not case:
        return base, model, None, None
    handles = [elip_plugin.apply(each, config_of(case)) for each in (base, model)]
    return base, model, *handles


@pytest.mark.filterwarnings("ignore:this plan is counted at")
@pytest.mark.parametrize("case", CASES)
def test_question_answering_as_lavis(case: str) -> None:
    """Tokens kept, features, the question's states, answers' scores and gradients.

    Answers are written from the same tokens; LAVIS itself writes none beside this transformers.
    """
    base, model, theirs, ours = pruned_pair("blip_vqa", hf.BlipForQuestionAnswering, case)
    for questions, training in itertools.product((PADDED, EQUAL), (True, False)):
        base.train(training), model.train(training)
        given = {**samples(), "text_input": questions}
        question = texts_of(base, questions, base.tokenizer.enc_token_id)
        answer = texts_of(base, ANSWERS, base.tokenizer.bos_token_id)
        batch = {
            **question,
            "pixel_values": given["image"],
            "decoder_input_ids": answer["input_ids"],
            "decoder_attention_mask": answer["attention_mask"],
        }
        out, their_kept = kept_by(theirs, base, dict(given))
        expected = out.intermediate_output
        with recorded(model.text_encoder) as states, recorded(model.text_decoder) as answers:
            found, kept = kept_by(ours, model, **batch)
        assert all(torch.equal(a, b) for a, b in zip(kept, their_kept, strict=True))
        assert len(kept) == (len(ours.plan.stages) if ours else 0)
        close(found.image_embeds, expected.image_embeds)
        close(states[-1].last_hidden_state, expected.encoder_output.last_hidden_state)
        beams = {"num_beams": 3, "max_length": 10, "min_length": 1}
        asked = {**question, "pixel_values": given["image"]}
        with recorded(model.text_encoder) as again:
            _, kept_again = kept_by(ours, model.generate, **asked, **beams)
        assert all(torch.equal(a, b) for a, b in zip(kept, kept_again, strict=True))
        assert torch.equal(again[-1][0], states[-1][0])
        if questions is PADDED:
            continue
        close(answers[0].logits, expected.decoder_output.logits)
        for each, output in ((base, expected.decoder_output), (model, answers[0])):
            each.zero_grad()
            output.logits.square().sum().backward()
        gradients = dict(base.text_encoder.named_parameters())
        learns = 0
        for name, parameter in model.text_encoder.named_parameters():
            gradient = gradients[name].grad
            assert (parameter.grad is None) == (gradient is None), name
            if gradient is not None:
                close(parameter.grad, gradient)
                learns += 1
        assert learns > 20


@pytest.mark.filterwarnings("ignore:this plan is counted at")
@pytest.mark.parametrize("case", CASES)
def test_matching_as_lavis(case: str) -> None:
    kind = hf.BlipForImageTextRetrieval
    made = pruned_pair("blip_image_text_matching", kind, case, image_text_hidden_size=16)
    base, model, theirs, ours = made
    given = samples()
    text = texts_of(base, given["text_input"], base.tokenizer.enc_token_id)
    for training in (True, False):
        base.train(training), model.train(training)
        expected, their_kept = kept_by(theirs, base, dict(given))
        found, kept = kept_by(ours, model, **text, pixel_values=given["image"])
        assert all(torch.equal(a, b) for a, b in zip(kept, their_kept, strict=True))
        close(found.itm_score, expected)
