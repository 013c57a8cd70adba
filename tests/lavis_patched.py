"""Checks, on tiny models, of what `patches/lavis-1.0.2` mends and the plugin mends at run time.

A script, because each form needs a process of its own:

    python tests/lavis_patched.py FORM DATA RUNS CHECK...

FORM is "plugin" (our twins and elip_runner on LAVIS as published) or "stock" (LAVIS' own models
and runner_base, without the plugin). DATA is a folder of `write_data`, RUNS one for the runs. It
uses whatever `lavis` comes first on the path, and writes RUNS.<rank>.json: for each check
"works", or the error.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

CHECKS: dict[str, Callable[[], None]] = {}
NEWER = "newer"
"""Makes the libraries look like newer ones before LAVIS is imported, and then is a check."""

FORM, DATA, RUNS = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
PLUGIN = FORM == "plugin"
VOCABULARY = DATA / "vocab.txt"


def check(function: Callable[[], None]) -> Callable[[], None]:
    CHECKS[function.__name__] = function
    return function


def age_libraries() -> None:
    """Take away what transformers 4.57 and numpy 2 took away."""
    import numpy
    import transformers.modeling_utils

    for module, names in (
        (numpy, ["Inf"]),
        (
            transformers.modeling_utils,
            ["apply_chunking_to_forward", "find_pruneable_heads_and_indices", "prune_linear_layer"],
        ),
    ):
        for name in names:
            vars(module).pop(name, None)


def stand_in() -> None:
    """Give LAVIS' own models what they would fetch, and small sizes; ours have keys for that."""
    from lavis.models import med
    from lavis.models.base_model import BaseModel
    from lavis.models.vit import VisionTransformerEncoder
    from lavis_runs import bert_family
    from torch import nn
    from transformers import BertConfig, BertTokenizer

    sizes = bert_family("", DATA)
    read: Any = BertConfig.from_json_file
    load = BaseModel.load_checkpoint_from_config

    def bert(cls: Any, path: Any) -> Any:
        config = read(path)
        words = len(VOCABULARY.read_text().splitlines()) + 2  # BLIP adds two
        config.update(
            {**sizes["bert"], "encoder_width": sizes["vit"]["width"], "vocab_size": words}
        )
        return config

    def tower(cls: Any, cfg: Any, from_pretrained: bool = False) -> Any:
        made = cls(
            img_size=cfg.image_size,
            patch_size=sizes["vit"]["patch_size"],
            embed_dim=sizes["vit"]["width"],
            depth=sizes["vit"]["depth"],
            num_heads=sizes["vit"]["heads"],
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_grad_checkpointing=cfg.get("vit_grad_ckpt", False),
            ckpt_layer=cfg.get("vit_ckpt_layer", 0),
        )
        made.vision_width = made.embed_dim
        return made

    def initial(cls: Any, name: Any, config: Any, **more: Any) -> Any:
        return cls(config, **more)

    def tokenizer(cls: Any, name: Any) -> Any:
        return cls(vocab_file=str(VOCABULARY))

    BertConfig.from_json_file = classmethod(bert)  # type: ignore[assignment]
    BertTokenizer.from_pretrained = classmethod(tokenizer)  # type: ignore[assignment]
    VisionTransformerEncoder.from_config = classmethod(tower)
    med.BertPreTrainedModel.from_pretrained = classmethod(initial)
    BaseModel.load_checkpoint_from_config = lambda self, cfg: cfg.pretrained and load(self, cfg)


# ---------------------------------------------------------------------------------------------
# Models.

TYPES = {"albef_retrieval": "flickr", "albef_nlvr": "nlvr", "albef_vqa": "vqav2"}


def section(arch: str, **more: Any) -> dict[str, Any]:
    from lavis_runs import bert_family

    keys = bert_family(("elip_" if PLUGIN else "") + arch, DATA, queue_size=8, **more)
    keys.update(model_type=TYPES.get(arch, "base"), load_finetuned=False, num_classes=3)
    keys.setdefault("pretrained", None)
    return keys


def build(arch: str, **more: Any) -> Any:
    import torch
    from lavis.common.registry import registry
    from omegaconf import OmegaConf

    torch.manual_seed(0)
    keys = section(arch, **more)
    cls = registry.get_model_class(keys["arch"])
    default = OmegaConf.load(cls.default_config_path(keys["model_type"])).model
    return cls.from_config(OmegaConf.merge(default, keys)).train()


def samples() -> dict[str, Any]:
    import torch

    image, image0, image1 = torch.randn(3, 4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    return {
        "image": image,
        "image0": image0,
        "image1": image1,
        "text_input": ["a red thing", "the blue table", "a dark door", "a pale and flat thing"],
        "label": torch.tensor([0, 1, 0, 1]),
        "answer": ["red", "blue", "a dark door", "pale"],
        "n_answers": torch.tensor([1, 1, 1, 1]),
        "weight": torch.ones(4),
        "epoch": 1,
        "iters": 1,
        "num_iters_per_epoch": 4,
    }


def learns(model: Any) -> Any:
    """Whether a step gives a finite loss and gradients in the tower; the output."""
    import torch

    output = model(samples())
    output["loss"].backward()
    assert torch.isfinite(output["loss"])
    tower = model.visual if hasattr(model, "visual") else model.visual_encoder
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in tower.parameters())
    return output


def mask_of_its_own(arch: str) -> None:
    """The momentum tower may give fewer tokens than the other one."""
    model = build(arch)
    model.visual_encoder_m.register_forward_hook(lambda module, args, output: output[:, :5])
    learns(model)


@check
def mask_pretrain() -> None:
    mask_of_its_own("albef_pretrain")


@check
def mask_nlvr() -> None:
    mask_of_its_own("albef_nlvr")


@check
def twin_weights() -> None:
    """Checkpointing changes no gradient, and the momentum twin runs its own weights."""
    import torch
    from lavis.models import vit

    calls: list[Any] = []
    inner = vit.Attention.forward

    def counted(self: Any, *args: Any, **options: Any) -> Any:
        calls.append(self)
        return inner(self, *args, **options)

    image = samples()["image"]
    plain = build("albef_pretrain")
    with mock.patch.object(vit.Attention, "forward", counted):
        model = build("albef_pretrain", vit_grad_ckpt=True, vit_ckpt_layer=12)
        with torch.no_grad():
            for weight in model.visual_encoder.parameters():
                weight.add_(0.1 * torch.randn_like(weight))
        plain.load_state_dict(model.state_dict())
        model.visual_encoder(image).square().sum().backward()
        assert len(calls) == 24  # 12 blocks, each a second time in backward
        plain.visual_encoder(image).square().sum().backward()
    pairs = zip(model.visual_encoder.parameters(), plain.visual_encoder.parameters())
    for left, right in pairs:
        assert (left.grad is None) == (right.grad is None)
        if left.grad is not None:
            torch.testing.assert_close(left.grad, right.grad)
    with torch.no_grad():
        theirs, own = model.visual_encoder_m(image), plain.visual_encoder_m(image)
    assert torch.equal(theirs, own), "the twin runs the weights of the other tower"


@check
def clip_loss() -> None:
    """CLIP's loss in one process, and over all processes if there are several."""
    import torch
    import torch.nn.functional as F
    from lavis.common.dist_utils import get_world_size
    from lavis.models import CLIP
    from lavis_runs import clip_family

    torch.manual_seed(0)
    keys = clip_family("elip_clip", DATA)
    if PLUGIN:
        from lavis.common.registry import registry

        model = registry.get_model_class("elip_clip").from_config(keys)
    else:
        model = CLIP(**keys["clip"])
    output = learns(model.train())
    assert model.loss.world_size == get_world_size()
    features = output.intermediate_output
    logits = output.logit_scale_exp * features.image_embeds_proj @ features.text_embeds_proj.T
    order = torch.arange(len(logits))
    own = (F.cross_entropy(logits, order) + F.cross_entropy(logits.T, order)) / 2
    if get_world_size() == 1:
        torch.testing.assert_close(output.loss, own)


@check
def nlvr_loading() -> None:
    """Pre-trained weights without a momentum twin load, and the twin becomes their copy."""
    import torch

    RUNS.mkdir(parents=True, exist_ok=True)
    made = build("albef_nlvr").state_dict()
    state = {k: v + v.is_floating_point() for k, v in made.items() if "_m." not in k}
    torch.save({"model": state}, RUNS / "nlvr.pth")
    model = build("albef_nlvr", pretrained=str(RUNS / "nlvr.pth"))
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, state[name.replace("_m.", ".", 1)]), name


@check
def distill_off_nlvr() -> None:
    learns(build("albef_nlvr", use_distill=False))


@check
def distill_off_vqa() -> None:
    learns(build("albef_vqa", use_distill=False))


@check
def distill_off_classification() -> None:
    learns(build("blip_classification", use_distill=False))


@check
def classification() -> None:
    output = learns(build("blip_classification"))
    assert output.intermediate_output.encoder_output_m is not None


@check
def newer() -> None:
    """LAVIS' language heads keep their bias when published weights load."""
    import torch
    from lavis.models import med
    from transformers import PreTrainedModel
    from transformers.models.bert.configuration_bert import BertConfig

    keys: Any = section("albef_pretrain")["bert"]
    config: Any = BertConfig(**keys, num_hidden_layers=1, vocab_size=30)
    config.update({"fusion_layer": 1, "encoder_width": 32})
    config.update({"add_cross_attention": False, "add_type_embeddings": False})
    head = med.BertForMaskedLM(config)
    torch.nn.init.ones_(head.cls.predictions.bias)
    head.save_pretrained(RUNS / "head", safe_serialization=False)
    load: Any = PreTrainedModel.from_pretrained
    loaded = load.__func__(med.BertForMaskedLM, str(RUNS / "head"), config=config)
    predictions = loaded.cls.predictions
    assert predictions.decoder.bias is predictions.bias and bool((predictions.bias == 1).all())


# ---------------------------------------------------------------------------------------------
# Runs. The steps are those of the train.py that LAVIS documents.


def start(name: str, valid: bool = False, **run: Any) -> Any:
    """Do all steps but the last; gives the runner."""
    import lavis.common.optims
    import lavis.runners  # noqa: F401
    import torch
    from lavis.common.config import Config
    from lavis.common.dist_utils import get_rank, get_world_size, init_distributed_mode
    from lavis.common.logger import setup_logger
    from lavis.common.registry import registry
    from lavis.datasets import builders  # noqa: F401
    from lavis.tasks import setup_task
    from omegaconf import OmegaConf

    if PLUGIN:
        from elip_plugin.hosts.lavis.runtime.train import _start_processes as init_distributed_mode
    for path in ("output_dir", "result_dir"):  # LAVIS refuses a second run in a process
        registry.mapping["paths"].pop(path, None)
    processor = {"name": "blip_image_eval", "image_size": 64}
    annotations = {
        split: {"url": [str(DATA / file)], "storage": [str(DATA / file)]}
        for split, file in (
            ("train", "pairs.json"),
            ("val", "held_out.json"),
            ("test", "held_out.json"),
        )
    }
    config = {
        "model": section("albef_retrieval"),
        "datasets": {
            "flickr30k": {
                "build_info": {"annotations": annotations, "images": {"storage": str(DATA)}},
                "vis_processor": {"train": processor, "eval": processor},
                "text_processor": {
                    "train": {"name": "blip_caption"},
                    "eval": {"name": "blip_caption"},
                },
            }
        },
        "run": {
            "runner": "elip_runner" if PLUGIN else "runner_base",
            "task": "retrieval",
            "lr_sched": "linear_warmup_cosine_lr",
            "init_lr": 1e-3,
            "min_lr": 1e-5,
            "weight_decay": 0.05,
            "max_epoch": 2,
            "batch_size_train": 8 // int(os.environ.get("WORLD_SIZE", 1)),
            "batch_size_eval": 8,
            "num_workers": 0,
            "k_test": 4,
            "seed": 1,
            "output_dir": str(RUNS),
            "evaluate": False,
            "train_splits": ["train"],
            "valid_splits": ["val"] if valid else [],
            "test_splits": ["test"],
            "use_dist_eval_sampler": False,
            "device": "cpu",
            "world_size": 1,
            "dist_url": "env://",
            "distributed": True,
            **run,
        },
    }
    RUNS.mkdir(parents=True, exist_ok=True)
    path = RUNS / f"{name}_{os.environ.get('RANK', 0)}.yaml"
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    cfg = Config(SimpleNamespace(cfg_path=str(path), options=None))
    if not torch.distributed.is_initialized():
        init_distributed_mode(cfg.run_cfg)
    else:  # a second run in a process
        cfg.run_cfg.gpu = int(os.environ["LOCAL_RANK"])
    assert cfg.run_cfg.distributed == torch.distributed.is_initialized()
    assert get_world_size() == int(os.environ.get("WORLD_SIZE", 1))
    torch.manual_seed(cfg.run_cfg.seed + get_rank())
    setup_logger()
    cfg.pretty_print()
    task = setup_task(cfg)
    datasets = task.build_datasets(cfg)
    model = task.build_model(cfg)
    runner_class = registry.get_runner_class(cfg.run_cfg.runner)
    return runner_class(cfg=cfg, job_id=name, task=task, model=model, datasets=datasets)


@contextmanager
def seen(runner: Any) -> Iterator[dict[int, list[int]]]:
    """Record which images each epoch trains on, in order."""
    images: dict[int, list[int]] = {}
    inner = runner.task.train_step

    def recorded(model: Any, samples: Any) -> Any:
        images.setdefault(samples["epoch"], []).extend(samples["image_id"].tolist())
        return inner(model=model, samples=samples)

    with mock.patch.object(runner.task, "train_step", recorded):
        yield images


def weights(runner: Any) -> dict[str, Any]:
    return {name: weight.clone() for name, weight in runner._model.state_dict().items()}


def saved(name: str) -> list[str]:
    return sorted(path.name for path in (RUNS / name).glob("*.pth"))


ORDER: dict[int, list[int]] = {}


@check
def trains() -> None:
    """Two epochs of two steps and a retrieval evaluation."""
    import torch
    from lavis.common.dist_utils import get_rank, get_world_size

    runner = start("first")
    before = weights(runner)
    with seen(runner) as images:
        runner.train()
    ORDER.update(images)
    share = 16 // get_world_size()
    assert [(epoch, len(ids)) for epoch, ids in images.items()] == [(0, share), (1, share)]
    after = weights(runner)
    for part in ("visual_encoder.", "visual_encoder_m."):
        assert any(not torch.equal(before[k], after[k]) for k in before if k.startswith(part))
    wrapped = isinstance(runner.model, torch.nn.parallel.DistributedDataParallel)
    assert wrapped == torch.distributed.is_initialized()
    if get_rank() == 0:
        assert saved("first") == ["checkpoint_0.pth", "checkpoint_1.pth"]
        scores = [json.loads(row) for row in (RUNS / "first" / "evaluate.txt").open()]
        assert len(scores) == 1 and 0 <= scores[0]["txt_r1"] <= 100
        log = (RUNS / "first" / "log.txt").read_text()
        assert log.count('"train_loss":') == 2


@check
def evaluates() -> None:
    """`BaseTask.evaluation` leaves a CPU run's samples on the CPU."""
    from lavis.tasks.base_task import BaseTask

    runner = start("evaluation")
    task: Any = runner.task
    task.evaluation = partial(BaseTask.evaluation, task)
    task.valid_step = lambda model, samples: [samples["image"].device.type] * len(samples["image"])
    task.after_evaluation = lambda val_result, **_: val_result
    assert runner.evaluate(skip_reload=True) == {"test": ["cpu"] * 6}


@check
def iterates() -> None:
    """The other runner, which counts iterations."""
    runner = start(
        "iterations", runner="runner_iter", max_iters=4, iters_per_inner_epoch=2, test_splits=[]
    )
    runner.train()
    assert saved("iterations") == ["checkpoint_2.pth", "checkpoint_4.pth"]


@check
def resumes() -> None:
    """What a run goes on with is what was saved, the momentum twin included."""
    import torch

    state = torch.load(RUNS / "first" / "checkpoint_0.pth")
    runner = start("second", resume_ckpt_path=str(RUNS / "first" / "checkpoint_0.pth"))
    inner = runner.train_epoch
    epochs: list[int] = []

    def compared(epoch: int) -> Any:
        epochs.append(epoch)
        ours = runner._model.state_dict()
        assert ours.keys() == state["model"].keys()
        assert any(key.startswith("text_encoder_m.") for key in ours)
        assert all(torch.equal(ours[key], state["model"][key]) for key in ours)
        moments = runner.optimizer.state_dict()["state"]
        assert moments and moments.keys() == state["optimizer"]["state"].keys()
        for key, values in state["optimizer"]["state"].items():
            assert all(torch.equal(moments[key][name], values[name]) for name in values)
        return inner(epoch)

    runner.train_epoch = compared
    runner.train()
    assert epochs == [1]
    assert saved("second") == ["checkpoint_1.pth"]


@check
def resumed_order() -> None:
    """A run that goes on in epoch 1 sees the images in the order of epoch 1."""
    runner = start("order", test_splits=[], max_epoch=3)
    runner.start_epoch = 1
    with seen(runner) as images:
        runner.train()
    assert images[1] != ORDER[0], "the order of epoch 0"
    assert images[1] == ORDER[1]
    assert images[2] != images[1], "the order of epoch 1 twice"


@check
def resumed_best() -> None:
    """A run that goes on knows the best score so far, and is tested where none is better."""
    import torch
    from lavis.tasks import RetrievalTask
    from torch import nn

    scores = iter([10.0, 30.0, 20.0, 0.0, 25.0, 28.0, 0.0])

    def reported(*args: Any) -> dict[str, float]:
        return {"agg_metrics": next(scores)}

    # Another fault, that the twin is not saved, must not hide this one.
    inner = nn.Module.load_state_dict

    def lenient(self: Any, state: Any, strict: bool = True, **more: Any) -> Any:
        return inner(self, state, strict=False, **more)

    with (
        mock.patch.object(RetrievalTask, "_report_metrics", staticmethod(reported)),
        mock.patch.object(nn.Module, "load_state_dict", lenient),
    ):
        start("best", valid=True, max_epoch=3).train()
        best = RUNS / "best" / "checkpoint_best.pth"
        assert torch.load(best)["epoch"] == 1
        runner = start("worse", valid=True, max_epoch=4, resume_ckpt_path=str(best))
        runner.train()
    assert "checkpoint_best.pth" not in saved("worse"), "the best score was forgotten"
    assert next(scores, None) is None


def joins(variables: dict[str, str]) -> None:
    """A CPU run joins the process group that these variables announce, by gloo."""
    import torch
    from lavis.common.dist_utils import init_distributed_mode
    from omegaconf import OmegaConf

    if PLUGIN:
        from elip_plugin.hosts.lavis.runtime.train import _start_processes as init_distributed_mode
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    run = OmegaConf.create({"device": "cpu", "world_size": 1, "dist_url": "env://"})
    with mock.patch.dict(os.environ, {**variables, **address}):
        init_distributed_mode(run)
    assert run.distributed and torch.distributed.get_backend() == "gloo"
    torch.distributed.destroy_process_group()


@check
def torchrun() -> None:
    joins({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"})


@check
def slurm() -> None:
    joins({"SLURM_PROCID": "0"})


def outcome(name: str) -> str:
    try:
        CHECKS[name]()
    except Exception as error:
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"[:200]
    return "works"


def report(found: dict[str, str]) -> None:
    """Write the outcomes; LAVIS keeps all processes but the first from printing."""
    Path(f"{RUNS}.{os.environ.get('RANK', '0')}.json").write_text(json.dumps(found))


def main() -> None:
    wanted = sys.argv[4:]
    warnings.simplefilter("ignore")
    if PLUGIN:
        import elip_plugin  # noqa: F401
    if NEWER in wanted:
        age_libraries()
    try:
        import lavis.models
        import torch
        from lavis.datasets.datasets import dataloader_utils
    except ImportError as error:
        report({name: f"{type(error).__name__}: {error}" for name in wanted})
        return
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    dataloader_utils.time.sleep = lambda _: None  # LAVIS sleeps between epochs
    if not PLUGIN:
        stand_in()
    found = {name: outcome(name) for name in wanted}
    if not PLUGIN:
        # elip.pth looks at its switch in this module.
        loaded = {name for name in sys.modules if name.startswith("elip_plugin")}
        assert loaded <= {"elip_plugin", "elip_plugin.hosts.autoload"}, loaded
    report({"lavis": os.path.dirname(lavis.models.__file__), **found})


if __name__ == "__main__":
    main()
