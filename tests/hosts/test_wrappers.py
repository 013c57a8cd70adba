"""Wrappers of a model, in any order: its handle is found, prunes right, and is removed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from conftest import TINY, recorded_lengths
from torch import Tensor, nn

import elip_plugin
from elip_plugin.errors import UnsupportedModelError
from elip_plugin.hosts.registry import find_host
from elip_plugin.patching.wrappers import unwrap

peft = pytest.importorskip("peft")
WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "DataParallel": nn.DataParallel,
    "DistributedDataParallel": lambda model: nn.parallel.DistributedDataParallel(model),
    "compile": lambda model: torch.compile(model, backend="eager"),
    "PEFT": lambda model: peft.get_peft_model(model, LORA),
}
LORA = peft.LoraConfig(r=2, target_modules=r".*(q_proj|c_fc|fc1|qkv)", init_lora_weights=False)
CONFIG = {"stages": [{"block": 1, "lookahead": 1, "keep": 0.5}]}
PAIRS = [
    pair for pair in itertools.product(WRAPPERS, repeat=2)
    if pair != ("compile", "compile")  # a function; see below
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def process_group(tmp_path_factory: Any) -> Iterator[None]:
    file = tmp_path_factory.mktemp("group") / "store"
    torch.distributed.init_process_group("gloo", f"file://{file}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def make_open_clip() -> tuple[Any, tuple[Any, ...], dict[str, Any], Any]:
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    small = {**TINY, "vision_cfg": {**TINY["vision_cfg"], "layers": 3}}
    model = open_clip.CLIP(**small, output_dict=True)
    pairs = torch.randn(2, 3, 64, 64), torch.randint(1, 100, (2, 24))
    return model, pairs, {}, model.visual.transformer.resblocks


def make_transformers(family: str = "clip") -> tuple[Any, tuple[Any, ...], dict[str, Any], Any]:
    pytest.importorskip("transformers", minversion="4.57")
    from hosts.transformers.tiny import inputs, layers_of, make

    model = make(family, num_hidden_layers=3)
    return model, (), inputs(batch=2, family=family), layers_of(model)


MAKERS = {
    "open_clip": make_open_clip,
    "transformers": make_transformers,
    "transformers, BLIP": lambda: make_transformers("blip_vqa"),
}


def image_features(out: Any) -> Tensor:
    return out["image_features"] if "image_features" in out else out["image_embeds"]


def wrapped(model: Any, names: tuple[str, ...]) -> Any:
    torch.manual_seed(1)  # the adapters' weights
    for name in reversed(names):
        model = WRAPPERS[name](model)
    return model


def cases() -> Iterator[Any]:
    for host, names, applied in itertools.product(MAKERS, PAIRS, ("inside", "outside")):
        compiled = "compile" in names
        # What looks through a compiler is the same for all hosts, whose own tests compile their
        # models; pruned inside of one that is the inner wrapper, and outside of the outer one.
        if compiled and (host != "open_clip" or (names[0] == "compile") != (applied == "outside")):
            continue
        marks = [pytest.mark.slow] if compiled else []
        yield pytest.param(host, names, applied, marks=marks, id="-".join((host, *names, applied)))


@pytest.mark.parametrize(("host", "names", "applied"), cases())
def test_two_wrappers(host: str, names: tuple[str, ...], applied: str) -> None:
    """Pruned before or after it is wrapped, a model gives what it gives with adapters alone."""
    torch.compiler.reset()
    alone, args, options, _ = MAKERS[host]()
    handle = elip_plugin.apply(alone, CONFIG)
    wrapped(alone, tuple(name for name in names if name == "PEFT"))
    expected = image_features(alone.train()(*args, **options))
    model, args, options, blocks = MAKERS[host]()
    if applied == "inside":
        elip_plugin.apply(model, CONFIG)
    outer = wrapped(model, names).train()
    unpruned = None if applied == "inside" else image_features(outer(*args, **options))
    if applied == "outside":
        elip_plugin.apply(outer, CONFIG)
    assert unwrap(outer) is model and find_host(outer).name == host.partition(",")[0]
    found = elip_plugin.find_handle(outer)
    assert found.model is model and found.plan == handle.plan
    features = image_features(outer(*args, **options))
    torch.testing.assert_close(features, expected)
    if "compile" not in names:  # which a hook on each block would break up
        with recorded_lengths(blocks) as lengths:
            outer(*args, **options)
        assert lengths == list(found.plan.tokens)
    texts = torch.randn(2, features.shape[-1])
    with elip_plugin.find_handle(outer).guide(texts):
        guided = image_features(outer(*args, **options))
    assert not torch.equal(guided, features)
    with found.disabled():
        plain = image_features(outer(*args, **options))
    assert not torch.equal(plain, features)
    found.remove()
    after = image_features(outer(*args, **options))
    assert torch.equal(after, plain)
    assert unpruned is None or torch.equal(after, unpruned)
    assert not [n for m in outer.modules() for n in vars(m) if n.startswith("elip")]
    with pytest.raises(UnsupportedModelError, match="is not pruned by ELIP"):
        elip_plugin.find_handle(outer)


class Net(nn.Module):
    """A model with a child that is called `module`, and without truth value."""

    def __init__(self) -> None:
        super().__init__()
        self.module, self._orig_mod = nn.Linear(2, 2), nn.Linear(2, 2)

    def __len__(self) -> int:
        return 0


def test_what_is_no_wrapper_stays() -> None:
    net = Net()
    assert unwrap(net) is net
    for wrap in (nn.DataParallel, torch.compile, torch.optim.swa_utils.AveragedModel):
        assert type(unwrap(wrap(net))) is Net
    assert unwrap(torch.compile(nn.DataParallel(torch.compile(net)))) is net


def test_what_is_no_module_is_refused() -> None:
    for call in (elip_plugin.apply, elip_plugin.find_handle):
        with pytest.raises(UnsupportedModelError, match=r"this function is no torch\.nn\.Module"):
            call(torch.compile(torch.compile(Net())))


def test_a_tuner_without_its_peft_model() -> None:
    model, *_ = make_open_clip()
    assert unwrap(peft.get_peft_model(model, LORA).base_model) is model


def test_fully_sharded() -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    class Whole(FullyShardedDataParallel):  # without a GPU none can be built
        def __init__(self, module: nn.Module) -> None:
            nn.Module.__init__(self)
            self._fsdp_wrapped_module = module

    net = Net()
    assert unwrap(Whole(torch.compile(net))) is net


def test_a_replaced_forward_is_refused() -> None:
    """As accelerate does it; the model would not encode its text first, and prune nothing."""
    model, *_ = make_open_clip()
    forward = model.forward
    model.forward = lambda *args, **options: forward(*args, **options)
    with pytest.raises(UnsupportedModelError, match="forward of this CLIP was replaced on the obj"):
        elip_plugin.apply(model, CONFIG)
    assert not [n for m in model.modules() for n in vars(m) if n.startswith("elip")]
    del model.forward
    elip_plugin.apply(model, CONFIG).remove()
