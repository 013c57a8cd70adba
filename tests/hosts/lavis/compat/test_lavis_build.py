"""Building LAVIS' models offline: faults are named, checkpoints load, all seams are undone."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch

pytest.importorskip("lavis")

import transformers
from lavis.models import med
from lavis.models.base_model import BaseModel
from lavis.models.blip_models.blip import BlipBase
from lavis.models.clip_models import model as clip_model
from lavis.models.vit import VisionTransformerEncoder
from lavis_family import (
    ARCHS,
    BERT,
    CLIP,
    STILL,
    VIT,
    bert_sizes,
    is_clip,
    pruned,
    quiet,
    section,
    stock,
)
from lavis_recorders import assert_equal
from omegaconf import OmegaConf
from torch import nn

from elip_plugin import find_handle
from elip_plugin.errors import ConfigError, DataError, PlanError

FETCHING = ["albef_pretrain", "albef_feature_extractor", "albef_vqa", "albef_nlvr", "blip_pretrain"]
LOADING = [a for a in ARCHS if not is_clip(a) and not a.endswith("_pretrain")]
"""Archs that load whole checkpoints; LAVIS' pre-training models do not."""
STRAIGHT = ["albef_feature_extractor", "blip_feature_extractor", "blip_classification"]
"""Those that load `pretrained` whatever `load_finetuned` says."""


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """What LAVIS fetches with, as it fails without a network."""

    def refuse(error: type[OSError]) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            raise error("no route to host\nsecond line")

        return call

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse(URLError))
    for module in ("albef_models", "albef_models.albef_vqa", "blip_models.blip", "base_model"):
        monkeypatch.setattr(f"lavis.models.{module}.download_cached_file", refuse(URLError))
    monkeypatch.setattr(clip_model, "download_pretrained", refuse(URLError))
    for module in ("tokenization_utils_base", "modeling_utils"):
        read = getattr(transformers, module).cached_file

        def local_only(name: Any, *args: Any, read: Any = read, **options: Any) -> Any:
            if Path(str(name)).exists():
                return read(name, *args, **options)
            raise OSError("no route to host\nsecond line")

        monkeypatch.setattr(f"transformers.{module}.cached_file", local_only)


def refused(match: str, arch: str = "albef_vqa", error: Any = ConfigError, **changes: Any) -> str:
    with pytest.raises(error, match=match) as caught:
        pruned(arch, **changes)
    return str(caught.value)


@pytest.mark.parametrize(
    "arch, changes, match",
    [
        (
            "albef_vqa",
            {"tokeniser": "x"},
            "'tokeniser' is not known for this arch; did you mean .'tokenizer'",
        ),
        ("albef_vqa", {"elpi": "paper"}, "'elpi' is not known for this arch; did you mean .'elip'"),
        ("clip", {"elpi": "paper"}, "'elpi' is not known for this arch; did you mean .'elip'"),
        ("albef_vqa", {"clip": CLIP}, "'clip' is not known for this arch"),
        ("clip", {"vit": VIT}, "'vit' is not known for this arch"),
        ("albef_vqa", {"elip": {"stage": []}}, "key 'stage' is not known"),
        ("albef_vqa", {"elip": "papper"}, "preset 'papper' is not known"),
        ("albef_vqa", {"init": "tower.pt"}, "init must be random, or be left out, got 'tower.pt'"),
        ("albef_vqa", {"tokenizer": "nowhere/vocab.txt"}, "'nowhere/vocab.txt' does not exist"),
        ("albef_vqa", {"bert": {"hidden_sise": 32}}, r"bert: \['hidden_sise'\] not known"),
        ("clip", {"pretrained": "nowhere.pt"}, "pretrained is 'nowhere.pt', which is no file"),
    ],
)
def test_faults_are_named(arch: str, changes: dict[str, Any], match: str) -> None:
    refused(match, arch, **changes)


def test_other_keys_of_a_section_are_refused() -> None:
    refused("unexpected keyword argument 'widht'", error=TypeError, vit={"widht": 32})
    given = {**CLIP, "heads": 2}
    refused("unexpected keyword argument 'heads'", "clip", error=TypeError, clip=given)


def test_keys_of_lavis_pass() -> None:
    """LAVIS' own keys may lie near ours; none of any shipped config is called a slip."""
    from lavis.common.utils import get_abs_path

    from elip_plugin.hosts.lavis.compat.offline import read_settings

    for arch, cls in ARCHS.items():
        paths = cls.replaces.PRETRAINED_MODEL_CONFIG_DICT.values()
        for given in (*(OmegaConf.load(get_abs_path(p)).model for p in paths), section(arch)):
            read_settings(given, cls.replaces, others=["elip"])


def test_a_plan_that_does_not_fit_is_refused() -> None:
    refused("lookahead", error=PlanError, elip={"stages": [dict(block=11, lookahead=2, keep=0.5)]})
    refused("16", error=PlanError, elip={"stages": [dict(block=2, lookahead=1, keep=40)]})


@pytest.mark.parametrize("arch", [a for a in LOADING if a not in STRAIGHT])
def test_a_checkpoint_that_is_wanted_must_be_named(arch: str) -> None:
    wanted = {"load_finetuned": True, "finetuned": None}
    refused("load_finetuned is True, but finetune_path is None", arch, AssertionError, **wanted)
    refused("finetuned is 'no.pt', which is no file", arch, load_finetuned=True, finetuned="no.pt")


@pytest.mark.parametrize("arch", LOADING)
def test_a_checkpoint_that_is_missing_is_named(arch: str) -> None:
    refused("pretrained is 'no.pt', which is no file", arch, pretrained="no.pt")


def test_no_checkpoint_at_all_is_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "elip_plugin")
    pruned("albef_vqa")
    assert "No weights are loaded" in caplog.text
    assert "ELIP prunes the vision tower by the question" in caplog.text
    caplog.clear()
    pruned("albef_vqa", elip={"preset": "paper", "text_weight": 0.0})
    assert "by the image alone" in caplog.text


FETCHED = (
    r"a part of {} could not be fetched \(.*no route to host\S?\); .*set init: random, tokenizer"
)


@pytest.mark.parametrize("arch", FETCHING)
def test_without_a_network_one_error_says_what_to_set(arch: str) -> None:
    name = ARCHS[arch].replaces.__name__
    bert = {**BERT, "encoder_width": 768}
    text = refused(FETCHED.format(name), arch, init=None, vit=None, bert=bert)
    assert "second line" not in text


def test_without_a_network_other_parts_fail_so_too() -> None:
    refused(FETCHED.format("AlbefVQA"), tokenizer=None)
    url = "https://host.invalid/model.pth"
    for arch in LOADING:
        if arch not in ("blip_nlvr", "albef_nlvr"):
            refused("could not be fetched", arch, pretrained=url)
    refused("could not be fetched", load_finetuned=True, finetuned=url)
    named = {"clip": None, "model_type": "ViT-B-32", "pretrained": "openai"}
    refused(FETCHED.format("CLIP"), "clip", **named)


@pytest.mark.parametrize("arch", LOADING)
def test_a_whole_checkpoint(arch: str, tmp_path: Path) -> None:
    """`finetuned` must hold the model; `pretrained` goes through each arch's own renaming."""
    path = str(tmp_path / "whole.pt")
    given = stock(arch, seed=5).state_dict()
    torch.save({"model": given}, path)
    if arch not in STRAIGHT:
        loaded = pruned(arch, load_finetuned=True, finetuned=path).state_dict()
        assert_equal(
            {k: v for k, v in loaded.items() if k != "queue_ptr"},
            {k: v for k, v in given.items() if k != "queue_ptr"},
        )
    if arch in ("albef_classification", "blip_retrieval", "blip_image_text_matching"):
        return  # LAVIS' loading is slow, and theirs is that of others
    if arch == "albef_vqa":  # takes the checkpoint of a pre-training model
        given = stock("albef_pretrain", seed=5).state_dict()
        torch.save({"model": given}, path)
    loaded = pruned(arch, pretrained=path).state_dict()
    tower = [key for key in given if key.startswith("visual_encoder.")]
    assert_equal({k: loaded[k] for k in tower}, {k: given[k] for k in tower})
    if arch == "albef_vqa":
        ours = loaded["text_decoder.bert.encoder.layer.0.output.dense.weight"]
        assert torch.equal(ours, given["text_encoder.bert.encoder.layer.6.output.dense.weight"])


def test_nlvr_copies_what_it_loads_into_its_momentum_twin(tmp_path: Path) -> None:
    given = stock("albef_nlvr", seed=5)
    state = {k: v for k, v in given.state_dict().items() if "_m." not in k}
    torch.save({"model": state}, tmp_path / "nlvr.pt")
    for distill in (True, False):
        model = pruned("albef_nlvr", pretrained=str(tmp_path / "nlvr.pt"), use_distill=distill)
        loaded = model.state_dict()
        assert_equal({k: loaded[k] for k in state}, state)
        for key in state:
            momentum = key.replace("visual_encoder.", "visual_encoder_m.")
            if distill and momentum != key:
                assert torch.equal(loaded[momentum], state[key]), key


def test_checkpoints_of_a_clip_with_its_own_sizes(tmp_path: Path) -> None:
    path = tmp_path / "clip.pt"
    given = stock("clip", seed=5).state_dict()
    for content in ({"model": given}, given):
        torch.save(content, path)
        assert_equal(dict(pruned("clip", pretrained=str(path)).state_dict()), dict(given))
    pruned("clip", pretrained="")
    torch.save({"state_dict": given}, path)
    refused("clip.pt lacks .* of the model's weights", "clip", pretrained=str(path))


class Opaque:
    """What no checkpoint needs."""


@pytest.mark.parametrize("key", ["pretrained", "finetuned"])
def test_a_checkpoint_of_other_objects_must_be_trusted(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "whole.pt")
    torch.save({"model": stock("albef_retrieval").state_dict(), "more": Opaque()}, path)
    load = {"load_finetuned": key == "finetuned", key: path}
    refused(r"Opaque.*ELIP_TRUST_CHECKPOINT=", "albef_retrieval", error=DataError, **load)
    monkeypatch.setenv("ELIP_TRUST_CHECKPOINT", path)
    pruned("albef_retrieval", **load)


def seam_state(arch: str) -> list[Any]:
    base = ARCHS[arch].replaces
    owners = [
        base,
        BaseModel,
        BlipBase,
        VisionTransformerEncoder,
        med.BertPreTrainedModel,
        clip_model,
        transformers.BertTokenizer,
        transformers.BertConfig,
    ]
    return [*(dict(vars(owner)) for owner in owners), torch.load]


@pytest.mark.parametrize("arch", ["albef_vqa", "albef_nlvr", "albef_pretrain", "blip_vqa", "clip"])
def test_lavis_is_as_it_was_after_success_and_after_failure(arch: str) -> None:
    # The first BERT of a process sets a class attribute of transformers' own.
    pruned(arch)
    before = seam_state(arch)
    pruned(arch)
    assert seam_state(arch) == before
    if is_clip(arch):
        refused("no file", arch, pretrained="nowhere.pt")
    else:
        refused("not known", arch, bert={"hidden_sise": 1})
    assert seam_state(arch) == before


def hand_built(arch: str) -> Any:
    """A model from LAVIS' own parts, without any of our construction."""
    cls, tokenizer = ARCHS[arch].replaces, pruned(arch).tokenizer
    sizes = {"encoder_width": 32, "add_cross_attention": True, "add_type_embeddings": False}
    config = med.BertConfig(vocab_size=len(tokenizer), **sizes, **bert_sizes(arch), **STILL)
    torch.manual_seed(3)
    tower = VisionTransformerEncoder(img_size=64, embed_dim=32, depth=12, num_heads=2)
    tower.vision_width = 32
    if arch == "albef_pretrain":
        config.fusion_layer = 6
        text: Any = med.BertForMaskedLM(config)
    else:
        text = med.XBertEncoder(config, add_pooling_layer=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cls, "init_tokenizer", classmethod(lambda cls: tokenizer))
        return cls(tower, text, 8, embed_dim=16)


@pytest.mark.parametrize("arch", ["albef_pretrain", "blip_retrieval"])
def test_random_weights_are_lavis_own_seed_for_seed(arch: str) -> None:
    ours = pruned(arch, seed=3)
    assert_equal(dict(ours.state_dict()), dict(hand_built(arch).state_dict()))


def test_lavis_own_construction_gives_the_same_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With a tower of LAVIS' own size, LAVIS' `from_config` needs nothing of ours."""
    cls = ARCHS["blip_feature_extractor"].replaces
    tokenizer = pruned("blip_feature_extractor").tokenizer
    config = med.BertConfig.from_json_file
    sizes = {"encoder_width": 768, "add_cross_attention": True, "add_type_embeddings": False}
    path = tmp_path / "bert.json"
    med.BertConfig(vocab_size=len(tokenizer), **BERT, **STILL, **sizes).to_json_file(path)
    plain = section(
        "blip_feature_extractor",
        med_config_path=str(path),
        vit=None,
        bert=None,
        tokenizer=None,
        init=None,
    )
    with quiet(), monkeypatch.context() as patch:
        patch.setattr(cls, "init_tokenizer", classmethod(lambda cls: tokenizer))
        torch.manual_seed(3)
        theirs = cls.from_config(plain)
    assert med.BertConfig.from_json_file == config
    vit = {"width": 768, "heads": 12}
    ours = pruned("blip_feature_extractor", seed=3, vit=vit, bert={**BERT, **STILL})
    assert_equal(dict(ours.state_dict()), dict(theirs.state_dict()))


def test_the_tower_takes_lavis_own_options() -> None:
    model = pruned("blip_vqa", vit_drop_path_rate=0.25, vit_layer_norm_epsilon=1e-3)
    blocks = model.visual_encoder.blocks
    assert blocks[11].drop_path.drop_prob == pytest.approx(0.25)
    assert {m.eps for m in model.visual_encoder.modules() if isinstance(m, nn.LayerNorm)} == {1e-3}
    default = pruned("blip_vqa", vit_drop_path_rate=0)
    assert {m.eps for m in default.visual_encoder.modules() if isinstance(m, nn.LayerNorm)} == {
        1e-6
    }
    assert find_handle(pruned("blip_vqa", elip="fast")).config.stages[0].lookahead == 1


def test_plain_mappings_will_do() -> None:
    """A config may be a dict or OmegaConf's, and is not changed."""
    given = OmegaConf.to_container(section("albef_vqa", vit_grad_ckpt=True, vit_ckpt_layer=2))
    before = dict(given)
    with quiet():
        ARCHS["albef_vqa"].from_config(given)
    assert given == before
