"""Known answers: transformers' models give what OpenCLIP's give with the same weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import elip_plugin
from elip_plugin.config import PRESETS
from elip_plugin.reducers import reducers

open_clip = pytest.importorskip("open_clip")
hf = pytest.importorskip("transformers", minversion="4.57")

from family import TIMM, narrow_timm  # noqa: E402
from hosts.transformers.tiny import TEXT, VISION, make  # noqa: E402


def cases() -> Iterator[tuple[str, str]]:
    """Every reducer, with every preset that it can follow; "" is its own stages."""
    yield "", ""
    for name, reducer in reducers().items():
        if "stages" in reducer.plan:
            yield "", name
            continue
        for preset, config in PRESETS.items():
            if reducer.looks_ahead or all(stage.lookahead == 1 for stage in config.stages):
                yield preset, name


CASES = list(cases())
WIDTH, HEADS, LENGTH = VISION["hidden_size"], VISION["num_attention_heads"], 16


def copy_block(layer: Any, block: Any, norms: tuple[Any, Any], mlp: tuple[Any, Any]) -> None:
    """Copy the weights of a block with packed projections."""
    packed, bias, out = block
    attn = layer.self_attn
    parts = zip((attn.q_proj, attn.k_proj, attn.v_proj), packed.chunk(3), bias.chunk(3))
    for linear, weight, offset in parts:
        linear.weight.copy_(weight)
        linear.bias.copy_(offset)
    attn.out_proj.load_state_dict(out.state_dict())
    for target, source in zip(
        (layer.layer_norm1, layer.layer_norm2, layer.mlp.fc1, layer.mlp.fc2), (*norms, *mlp)
    ):
        target.load_state_dict(source.state_dict())


def copy_transformer(layers: Any, blocks: Any) -> None:
    for layer, block in zip(layers, blocks, strict=True):
        attn = block.attn
        packed = attn.in_proj_weight, attn.in_proj_bias, attn.out_proj
        copy_block(layer, packed, (block.ln_1, block.ln_2), (block.mlp.c_fc, block.mlp.c_proj))


@torch.no_grad()
def clips() -> tuple[Any, Any]:
    """OpenCLIP's CLIP and transformers' with its weights."""
    torch.manual_seed(0)
    base = open_clip.CLIP(
        embed_dim=24,
        vision_cfg={"image_size": 64, "patch_size": 8, "layers": 12, "width": WIDTH,
                    "head_width": WIDTH // HEADS, "mlp_ratio": 2.0},
        text_cfg={"context_length": LENGTH, "vocab_size": 100, "width": 32, "heads": 2,
                  "layers": 2, "mlp_ratio": 2.0},
        output_dict=True,
    )  # fmt: skip
    text = {**TEXT, "hidden_act": "gelu"}
    vision = {**VISION, "hidden_act": "gelu"}
    config = hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    model, visual = hf.CLIPModel(config), base.visual
    vision_model = model.vision_model
    vision_model.embeddings.class_embedding.copy_(visual.class_embedding)
    vision_model.embeddings.patch_embedding.weight.copy_(visual.conv1.weight)
    vision_model.embeddings.position_embedding.weight.copy_(visual.positional_embedding)
    vision_model.pre_layrnorm.load_state_dict(visual.ln_pre.state_dict())
    vision_model.post_layernorm.load_state_dict(visual.ln_post.state_dict())
    copy_transformer(vision_model.encoder.layers, visual.transformer.resblocks)
    model.visual_projection.weight.copy_(visual.proj.t())
    text_model = model.text_model
    text_model.embeddings.token_embedding.weight.copy_(base.token_embedding.weight)
    text_model.embeddings.position_embedding.weight.copy_(base.positional_embedding)
    text_model.final_layer_norm.load_state_dict(base.ln_final.state_dict())
    copy_transformer(text_model.encoder.layers, base.transformer.resblocks)
    model.text_projection.weight.copy_(base.text_projection.t())
    return base.train(), model.train()


@torch.no_grad()
def siglips() -> tuple[Any, Any]:
    """OpenCLIP's SigLIP tower of timm and a SigLIP of transformers with its weights."""
    torch.manual_seed(0)
    name = "vit_base_patch16_siglip_224"
    vision = {"timm_model_name": name, "timm_pool": "map", "timm_proj": "none", "image_size": 224}
    text = {"context_length": LENGTH, "vocab_size": 100, "width": 32, "heads": 2, "layers": 1}
    with narrow_timm(name):
        base = open_clip.CustomTextCLIP(embed_dim=32, vision_cfg=vision, text_cfg=text).train()
    trunk = base.visual.trunk
    inner = trunk.blocks[0].mlp.fc1.out_features
    sizes = {"hidden_size": 32, "intermediate_size": inner, "num_attention_heads": 2}
    images = {"image_size": 224, "patch_size": 16, "hidden_act": "gelu"}
    config = make("siglip").config
    config.vision_config = hf.SiglipVisionConfig(**{**VISION, **sizes, **images})
    config.text_config.projection_size = 32
    model = hf.SiglipModel(config)
    tower = model.vision_model
    tower.embeddings.patch_embedding.load_state_dict(trunk.patch_embed.proj.state_dict())
    tower.embeddings.position_embedding.weight.copy_(trunk.pos_embed[0])
    tower.post_layernorm.load_state_dict(trunk.norm.state_dict())
    for layer, block in zip(tower.encoder.layers, trunk.blocks, strict=True):
        packed = block.attn.qkv.weight, block.attn.qkv.bias, block.attn.proj
        copy_block(layer, packed, (block.norm1, block.norm2), (block.mlp.fc1, block.mlp.fc2))
    pool, head = trunk.attn_pool, tower.head
    head.probe.copy_(pool.latent)
    head.attention.in_proj_weight.copy_(torch.cat([pool.q.weight, pool.kv.weight]))
    head.attention.in_proj_bias.copy_(torch.cat([pool.q.bias, pool.kv.bias]))
    head.attention.out_proj.load_state_dict(pool.proj.state_dict())
    head.layernorm.load_state_dict(pool.norm.state_dict())
    head.mlp.fc1.load_state_dict(pool.mlp.fc1.state_dict())
    head.mlp.fc2.load_state_dict(pool.mlp.fc2.state_dict())
    return base, model.train()


def config_of(preset: str, reducer: str) -> dict[str, Any]:
    config: dict[str, Any] = {"reducer": reducer, "eval_mode": "image"}
    if preset:
        config["preset"] = preset
    if reducers()[reducer].text_alone:
        return {**config, "eval_mode": "full"}
    return {**config, "text_weight": 0.5} if reducers()[reducer].reads_text else config


def unit(features: Any) -> Tensor:
    features = features if isinstance(features, Tensor) else features.pooler_output
    return torch.nn.functional.normalize(features, dim=-1)


@pytest.mark.filterwarnings("ignore:this plan is counted at")
@pytest.mark.parametrize(("preset", "reducer"), CASES)
def test_clip_as_openclip(preset: str, reducer: str) -> None:
    base, model = clips()
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(4, 3, 64, 64, generator=generator)
    ids = torch.randint(2, 98, (4, LENGTH), generator=generator)
    ids[:, -1] = TEXT["eos_token_id"]
    for each in (base, model):
        if reducer:
            elip_plugin.apply(each, config_of(preset, reducer))
    for training in (True, False):
        torch.manual_seed(3)
        expected = base.train(training)(images, ids)
        torch.manual_seed(3)
        out = model.train(training)(input_ids=ids, pixel_values=images)
        assert (out.image_embeds - expected["image_features"]).abs().max() < 1e-6
        assert (out.text_embeds - expected["text_features"]).abs().max() < 1e-6


@pytest.mark.skipif(not TIMM, reason="this environment's timm is too old for OpenCLIP")
@pytest.mark.filterwarnings("ignore:this plan is counted at")
@pytest.mark.parametrize(("preset", "reducer"), CASES)
def test_siglip_as_openclip(preset: str, reducer: str) -> None:
    base, model = siglips()
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(4, 3, 224, 224, generator=generator)
    texts = torch.randn(4, 32, generator=generator)
    found = []
    for each, encode in ((base, base.encode_image), (model, model.get_image_features)):
        torch.manual_seed(3)
        if not reducer:
            found.append(unit(encode(images)))
            continue
        handle = elip_plugin.apply(each, config_of(preset, reducer))
        with handle.guide(texts):
            found.append(unit(encode(images)))
    assert (found[0] - found[1]).abs().max() < 1e-6
