"""An exception anywhere inside: the next forward and backward are bitwise right, as is `remove`."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_threads import CASES, Case
from torch import Tensor, nn

import elip_plugin
from benchmarks.faults.counting import is_long, tried
from elip_plugin.errors import ElipError
from elip_plugin.patching.calls import thread

CONFIGS: dict[str, dict[str, Any]] = {
    "paper": {"preset": "paper", "text_weight": 0.9},
    "fast": {"preset": "fast", "text_weight": 0.9},
    "back": {"stages": [{"block": 2, "lookahead": 1, "keep": 0.5, "until": 6}], "text_weight": 0.0},
    "half": {"preset": "half"},
    "lowres": {"preset": "lowres"},
    **{name: {"reducer": name} for name in ("evit", "gumbel", "unique", "random", "cluster")},
}
KINDS = (RuntimeError, KeyboardInterrupt, MemoryError, GeneratorExit, SystemExit)


@functools.cache
def case_of(host: str) -> Case:
    return CASES[host]()


def tensors(value: Any) -> list[Tensor]:
    """All tensors of an output, with their graph."""
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if hasattr(value, "values") else value
    if not isinstance(parts, (str, bytes)) and hasattr(parts, "__iter__"):
        return [tensor for part in parts for tensor in tensors(part)]
    return []


def step(case: Case, model: Any) -> list[Tensor]:
    """Outputs and gradients of a training step, the same each time."""
    torch.manual_seed(0)
    model.zero_grad(set_to_none=True)
    out = [t for t in tensors(case.forward(model, case.batch(0))) if t.requires_grad]
    torch.stack([t.float().square().mean() for t in out]).sum().backward()
    return [t.detach() for t in out] + [p.grad for p in model.parameters() if p.grad is not None]


@contextmanager
def fault_in(module: nn.Module, kind: type[BaseException], call: int, back: bool) -> Iterator[None]:
    """Raise in some call of a module, or in its backward pass."""
    calls = 0

    def fail(*_: Any) -> None:
        raise kind("put in by a test")

    def hook(_module: nn.Module, _args: Any, out: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == call + 1:
            graph = [t for t in tensors(out) if t.requires_grad] if back else []
            graph[0].register_hook(fail) if graph else fail()

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def calls_in(case: Case) -> list[tuple[nn.Module, int]]:
    """The modules that a training step calls, each with the number of its call."""
    called: list[tuple[nn.Module, int]] = []
    counts: dict[nn.Module, int] = {}

    def hook(module: nn.Module, _args: Any, _out: Any) -> None:
        called.append((module, counts.get(module, 0)))
        counts[module] = counts.get(module, 0) + 1

    hooks = [module.register_forward_hook(hook) for module in case.model.modules()]
    step(case, case.model)
    for each in hooks:
        each.remove()
    return called


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    assert all(map(torch.equal, found, expected))


@functools.cache
def expected_of(host: str, name: str | None) -> list[Tensor] | None:
    """A step of a model without a fault, pruned or not; None where it is refused."""
    case = case_of(host)
    if name is None:
        return step(case, case.model)
    try:
        handle = elip_plugin.apply(case.model, {**CONFIGS[name]})
    except ElipError:
        return None
    try:
        return step(case, case.model)
    finally:
        handle.remove()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("host", ["OpenCLIP", "timm", "transformers", "BLIP"])
@settings(max_examples=50 if is_long() else 5)
@given(
    name=st.sampled_from([*CONFIGS]),
    place=st.integers(0, 10**6),
    kind=st.sampled_from(KINDS),
    back=st.booleans(),
    remove_first=st.booleans(),
)
def test_faults_inside(
    host: str,
    name: str,
    place: int,
    kind: type[BaseException],
    back: bool,
    remove_first: bool,
) -> None:
    case = case_of(host)
    unpruned, expected = expected_of(host, None), expected_of(host, name)
    if expected is None or unpruned is None:
        return
    assert not all(map(torch.equal, expected[:1], unpruned[:1]))
    handle = elip_plugin.apply(case.model, {**CONFIGS[name]})
    try:
        called = calls_in(case)
        module, call = called[place % len(called)]
        with fault_in(module, kind, call, back), pytest.raises(kind, match="put in by a test"):
            step(case, case.model)
        assert thread.innermost is None
        if not remove_first:
            assert_same(step(case, case.model), expected)
    finally:
        handle.remove()
    assert not [n for m in case.model.modules() for n in vars(m) if n.startswith("elip")]
    assert_same(step(case, case.model), unpruned)
    tried("exceptions inside a model")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", ["guide", "trace", "disabled"])
def test_faults_in_a_context(what: str, kind: type[BaseException]) -> None:
    """What a caller opens is closed by an exception of the caller's."""
    case = case_of("OpenCLIP")
    expected = expected_of("OpenCLIP", "fast")
    assert expected is not None
    handle = elip_plugin.apply(case.model, CONFIGS["fast"])
    try:
        context = {
            "guide": lambda: handle.guide(torch.randn(2, case.width)),
            "trace": handle.trace,
            "disabled": handle.disabled,
        }[what]
        with pytest.raises(kind), context():
            case.encode(case.model, case.batch(0))
            raise kind("put in by a test")
        assert thread.innermost is None
        assert_same(step(case, case.model), expected)
    finally:
        handle.remove()
    tried("exceptions in a context")


@pytest.mark.parametrize("kind", KINDS)
def test_faults_in_the_guide(kind: type[BaseException]) -> None:
    """The text encoder fails while a pruned forward asks for the guide."""
    case = case_of("OpenCLIP")
    expected, unpruned = expected_of("OpenCLIP", "fast"), expected_of("OpenCLIP", None)
    assert expected is not None and unpruned is not None
    handle = elip_plugin.apply(case.model, CONFIGS["fast"])
    try:
        with fault_in(case.model.transformer, kind, 0, False), pytest.raises(kind):
            step(case, case.model)
        assert thread.innermost is None
        assert_same(step(case, case.model), expected)
    finally:
        handle.remove()
    assert_same(step(case, case.model), unpruned)
    tried("exceptions inside a model")
