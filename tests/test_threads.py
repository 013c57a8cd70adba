"""One model in several threads, as servers and `torch.nn.DataParallel` use it: a law for each host.

Nothing of a call lies on what threads share: modules, pruners, a host's modules.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import replicate

import elip_plugin
from elip_plugin.errors import UnsupportedModelError
from elip_plugin.patching.calls import thread

THREADS = 4
CONFIG = {"preset": "fast", "text_weight": 0.9}
WAYS = ("caption", "traced", "guided", "disabled")


class Case(NamedTuple):
    """A model and what is done with it.

    Attributes:
        model: The model, in training mode, without chance.
        batch: Makes the batch of a number.
        forward: Runs the model on a batch.
        encode: Runs the vision tower on a batch.
        blocks: The tower's blocks.
        width: Of the text features that `Handle.guide` takes.
        config: What prunes it.
    """

    model: Any
    batch: Callable[[int], Any]
    forward: Callable[[Any, Any], Any]
    encode: Callable[[Any, Any], Any]
    blocks: Any
    width: int
    config: dict[str, Any] = CONFIG


def open_clip_case(name: str) -> Case:
    open_clip = pytest.importorskip("open_clip")
    import family

    if "SigLIP" in name and not family.TIMM:
        pytest.skip("this environment's timm is too old for OpenCLIP")
    config = open_clip.get_model_config(name)
    model = family.build(config)
    with torch.no_grad():  # CoCa leaves a part of its weights as they lay in memory
        for parameter in model.parameters():
            parameter.normal_(std=0.1)
    return Case(
        model,
        lambda i: family.inputs(model, seed=10 + i),
        lambda model, batch: model(*batch),
        lambda model, batch: model.encode_image(batch[0]),
        family.stack_of(model),
        family.WIDTH,
    )


def transformers_case(name: str) -> Case:
    pytest.importorskip("transformers", "4.57")
    from hosts.transformers import tiny

    model = tiny.make(name).train()

    def batch(i: int) -> dict[str, Any]:
        made = tiny.inputs(seed=10 + i, batch=2)
        del made["return_loss"]
        return made

    return Case(
        model,
        batch,
        lambda model, batch: model(**batch),
        lambda model, batch: model.get_image_features(batch["pixel_values"]),
        tiny.layers_of(model),
        24,
    )


def reader_case(name: str, width: int, config: dict[str, Any]) -> Case:
    """A model of transformers whose text side reads the tower."""
    pytest.importorskip("transformers", "4.57")
    from hosts.transformers import tiny

    model = tiny.make(name).train()
    return Case(
        model,
        lambda i: tiny.inputs(seed=10 + i, batch=2, family=name),
        lambda model, batch: model(**batch),
        lambda model, batch: model.vision_model(pixel_values=batch["pixel_values"])[0],
        tiny.layers_of(model),
        width,
        config,
    )


def lavis_case(arch: str, method: str) -> Case:
    pytest.importorskip("lavis")
    import lavis_family as family

    model = family.pruned(arch)
    elip_plugin.find_handle(model).remove()
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0

    def batch(i: int) -> dict[str, Any]:
        captions = family.CAPTIONS if i % 2 else family.OTHERS
        turned = [captions[(k + i // 2) % len(captions)] for k in range(len(captions))]
        return family.samples(turned, seed=10 + i)

    return Case(
        model,
        batch,
        lambda model, batch: getattr(model, method)(dict(batch)),
        lambda model, batch: model.visual_encoder.forward_features(batch["image"]),
        model.visual_encoder.blocks,
        32,
    )


def any_vit_case(name: str) -> Case:
    from hosts.anyvit import vits

    case = vits.CASES[name]
    model = vits.make(name)

    def batch(i: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(10 + i)
        return vits.images(seed=10 + i), torch.randn(2, case.guide, generator=generator)

    def forward(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
        with elip_plugin.find_handle(model).guide(batch[1]):
            return case.encode(model, batch[0])

    return Case(
        model,
        batch,
        forward,
        lambda model, batch: case.encode(model, batch[0]),
        case.blocks(model),
        case.guide,
    )


CASES: dict[str, Callable[[], Case]] = {
    "OpenCLIP": lambda: open_clip_case("ViT-tiny"),
    "CoCa": lambda: open_clip_case("coca_ViT-B-32"),
    "timm": lambda: open_clip_case("ViT-B-16-SigLIP"),
    "transformers": lambda: transformers_case("clip"),
    "dual encoder": lambda: transformers_case("dual"),
    "BLIP": lambda: reader_case("blip_vqa", 48, {"preset": "fast", "reducer": "similarity"}),
    "InstructBLIP": lambda: reader_case("instructblip", 32, CONFIG),
    "torchvision": lambda: any_vit_case("torchvision"),
    "LAVIS BLIP": lambda: lavis_case("blip_vqa", "forward_encoder"),
    "LAVIS ALBEF": lambda: lavis_case("albef_feature_extractor", "extract_features"),
}


def tensors(value: Any) -> list[Tensor]:
    """All tensors of an output."""
    if isinstance(value, Tensor):
        return [value.detach().clone()]
    if hasattr(value, "values"):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [tensor for part in value for tensor in tensors(part)]
    return []


def call(case: Case, handle: Any, way: str, i: int, batch: Any) -> list[Tensor]:
    """Run one forward in one of the ways."""
    with ExitStack() as stack:
        if way == "disabled":
            stack.enter_context(handle.disabled())
        trace = stack.enter_context(handle.trace()) if way == "traced" else None
        if way == "guided":
            generator = torch.Generator().manual_seed(i)
            rows = len(next(iter(tensors(batch))))
            stack.enter_context(handle.guide(torch.randn(rows, case.width, generator=generator)))
            return tensors(case.encode(case.model, batch))
        found = tensors(case.forward(case.model, batch))
        return found if trace is None else found + [stage.kept for stage in trace.stages]


class Broken(Exception):
    """Thrown in the middle of a forward."""


@pytest.fixture(autouse=True)
def _switch_often() -> Iterator[None]:
    """Let threads take turns as often as they can, with the arithmetic of one thread each."""
    threads, interval = torch.get_num_threads(), sys.getswitchinterval()
    torch.set_num_threads(1)
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)
    torch.set_num_threads(threads)


@contextmanager
def broken_at_will(case: Case) -> Iterator[threading.local]:
    """Let the sixth block fail in the threads that ask for it."""
    will = threading.local()

    def fail(module: Any, args: Any, output: Any) -> None:
        if getattr(will, "breaks", False):
            raise Broken

    hook = case.blocks[5].register_forward_hook(fail)
    yield will
    hook.remove()


def check(name: str, forwards: int) -> None:
    case = CASES[name]()
    with broken_at_will(case) as will, torch.no_grad():
        handle = elip_plugin.apply(case.model, case.config)
        batches = [case.batch(i) for i in range(THREADS)]
        expected = [
            {way: call(case, handle, way, i, batches[i]) for way in WAYS} for i in range(THREADS)
        ]
        for way in ("caption", "guided"):  # the guides differ, and so does what is kept
            assert not torch.equal(expected[0][way][0], expected[1][way][0])
        assert not torch.equal(expected[0]["caption"][0], expected[0]["disabled"][0])
        wrong: list[tuple[int, int, str]] = []

        def work(i: int) -> None:
            with torch.no_grad():
                for n in range(forwards):
                    way = WAYS[(n + i) % len(WAYS)]
                    will.breaks = n % 7 == 3
                    try:
                        found = call(case, handle, way, i, batches[i])
                    except Broken:
                        found = expected[i][way] if will.breaks else []
                    except Exception as error:
                        wrong.append((i, n, f"{way}: {error!r}"))
                        continue
                    will.breaks = False
                    if len(found) != len(expected[i][way]) or not all(
                        torch.equal(a, b) for a, b in zip(found, expected[i][way])
                    ):
                        wrong.append((i, n, way))
                if thread.innermost is not None:
                    wrong.append((i, forwards, "something is left open"))

        threads = [threading.Thread(target=work, args=(i,)) for i in range(THREADS)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert not wrong, f"{len(wrong)} of {THREADS * forwards} forwards: {wrong[:5]}"
        handle.remove()


NOT_LAVIS = [name for name in CASES if "LAVIS" not in name]  # its `device` reads parameters


@pytest.mark.parametrize("name", CASES)
def test_threads_do_not_meet(name: str) -> None:
    check(name, 24)


OTHERS = [pytest.param(name, marks=pytest.mark.newest) for name in NOT_LAVIS]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*OTHERS, *(name for name in CASES if "LAVIS" in name)])
def test_threads_do_not_meet_in_200_forwards(name: str) -> None:
    check(name, 200)


@contextmanager
def replicas_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], list[Any]]]:
    """Let `torch.nn.DataParallel` replicate a model on the CPU, where it has no devices."""
    module = sys.modules["torch.nn.parallel.replicate"]
    monkeypatch.setattr(module, "_get_device_index", lambda device, *_: device)
    monkeypatch.setattr(
        module,
        "_broadcast_coalesced_reshape",
        lambda tensors, devices, detach=False: [[t.view_as(t) for t in tensors] for _ in devices],
    )
    yield lambda model: list(replicate(model, list(range(THREADS))))


@pytest.mark.parametrize("way", ["caption", "broken"])
@pytest.mark.parametrize("name", NOT_LAVIS)
def test_replicas_of_data_parallel(name: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]()
    batches = [case.batch(i) for i in range(THREADS)]
    elip_plugin.apply(case.model, case.config)
    with (
        torch.no_grad(),
        broken_at_will(case) as will,
        replicas_on_the_cpu(monkeypatch) as replicas_of,
    ):
        expected = [tensors(case.forward(case.model, batch)) for batch in batches]

        def run(replica: Any, i: int) -> list[Tensor]:
            will.breaks = way == "broken" and i == 1
            with torch.no_grad():
                return tensors(case.forward(replica, batches[i]))

        for _ in range(5):
            with ThreadPoolExecutor(THREADS) as threads:  # new ones, as `parallel_apply`
                made = [
                    threads.submit(run, replica, i)
                    for i, replica in enumerate(replicas_of(case.model))
                ]
            for i, future in enumerate(made):
                if way == "broken" and i == 1:
                    assert isinstance(future.exception(), Broken)
                    continue
                ours = future.result()
                assert all(torch.equal(a, b) for a, b in zip(ours, expected[i], strict=True))
        for i, batch in enumerate(batches):
            again = tensors(case.forward(case.model, batch))
            assert all(torch.equal(a, b) for a, b in zip(again, expected[i], strict=True))


def test_what_is_open_around_data_parallel_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = CASES["OpenCLIP"]()
    handle = elip_plugin.apply(case.model, case.config)
    with replicas_on_the_cpu(monkeypatch) as replicas_of:
        guide = handle.guide(torch.randn(2, case.width))
        for opened in (guide, handle.trace(), handle.disabled()):
            message = "is open around a DataParallel"
            with opened, pytest.raises(UnsupportedModelError, match=message):
                replicas_of(case.model)


def state_of(case: Case) -> dict[str, Any]:
    """All attributes of all modules and pruners, and all globals of the hosts' modules."""
    found: dict[str, Any] = {}
    for name, module in case.model.named_modules():
        for key, value in vars(module).items():
            found[f"{name}.{key}"] = value
            if isinstance(value, dict):
                found |= {f"{name}.{key}.{k}": v for k, v in value.items()}
        if "elip" in vars(module):
            found |= {f"{name}.elip.{k}": v for k, v in vars(vars(module)["elip"]).items()}
    families = (f"transformers.models.{name}" for name in ("clip", "vit", "blip", "instructblip"))
    roots = ("open_clip", "lavis.models", "torchvision.models.vision_transformer", *families)
    for name, module in list(sys.modules.items()):
        if name.startswith(roots):
            found |= {f"{name}:{k}": v for k, v in vars(module).items()}
    return found


@pytest.mark.parametrize("way", ["caption", "guided"])
@pytest.mark.parametrize("name", CASES)
def test_no_attribute_changes_during_a_forward(name: str, way: str) -> None:
    case = CASES[name]()
    handle = elip_plugin.apply(case.model, case.config)
    batch = case.batch(0)
    with torch.no_grad():
        call(case, handle, way, 0, batch)  # what a host makes once, such as a cache of its own
        before, changed, looked = state_of(case), set(), []

        def look(*_: Any) -> None:
            looked.append(1)
            now = state_of(case)
            changed.update(k for k in before.keys() | now.keys() if before.get(k) is not now.get(k))

        hooks = [case.blocks[i].register_forward_hook(look) for i in (0, 6, 11)]
        before = state_of(case)
        call(case, handle, way, 0, batch)
        for hook in hooks:
            hook.remove()
    assert len(looked) >= 3 and not changed
