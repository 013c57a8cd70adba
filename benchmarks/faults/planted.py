"""Faults put in on purpose, of kinds that other libraries had: does the battery find them?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.faults.mutants import PACKAGE, ROOT, Mutant

EXCEPTIONS = ("tests/faults/test_exceptions.py",)
NUMERICS = ("tests/faults/test_numerics.py",)
FILES = ("tests/faults/test_files.py",)
CONFIGS = ("tests/faults/test_configs.py",)
THREADS = ("tests/test_threads.py",)
LAWS = ("tests/core", "tests/reducers", "tests/patching")


@dataclass(frozen=True)
class Fault:
    """A fault.

    Attributes:
        about: What goes wrong, and where it did.
        path: The file, below the package.
        before: What is replaced, once.
        after: By what.
        tests: The part of the battery that is run.
    """

    about: str
    path: str
    before: str
    after: str
    tests: tuple[str, ...]


FAULTS = (
    Fault(
        "what a forward has opened stays open after an exception (kvpress 221, 227, 244)",
        "patching/runner.py",
        "        finally:\n            thread.innermost = before",
        "        finally:\n            pass",
        EXCEPTIONS,
    ),
    Fault(
        "what a caller has opened stays open after an exception (kvpress 244)",
        "patching/calls.py",
        "    try:\n        yield value\n    finally:\n        thread.innermost = before",
        "    yield value\n    thread.innermost = before",
        EXCEPTIONS,
    ),
    Fault(
        "a state on what threads share (DataParallel with ToMe)",
        "patching/calls.py",
        "class Thread(threading.local):",
        "class Thread:",
        THREADS,
    ),
    Fault(
        "a list kept from one forward to the next (ToMe pops its own)",
        "patching/pruner.py",
        "    found: list[Tensor] = []\n\n    def read(y: Tensor)",
        "    found = _once.__dict__.setdefault('found', [])\n\n    def read(y: Tensor)",
        ("tests/patching", *THREADS),
    ),
    Fault(
        "a weight cast under no_grad stays in the cache of autocast (pytorch 112583)",
        "core/precision.py",
        "cache_enabled=False",
        "cache_enabled=True",
        LAWS,
    ),
    Fault(
        "logits in half precision overflow",
        "core/blocks.py",
        "if q.dtype != keys.dtype or q.dtype.itemsize < 4:",
        "if q.dtype != keys.dtype:",
        LAWS,
    ),
    Fault(
        "equal scores in any order (sort without stable)",
        "core/select.py",
        "best = ranks.sort(dim=1, descending=True, stable=True)",
        "best = ranks.flip(1).sort(dim=1, descending=True)",
        (*NUMERICS, "tests/core"),
    ),
    Fault(
        "a mean over the batch in place of the tokens: pictures change each other",
        "core/blocks.py",
        "F.normalize(keys - keys.mean(dim=1, keepdim=True), dim=2)",
        "F.normalize(keys - keys.mean(dim=(0, 1), keepdim=True), dim=2)",
        NUMERICS,
    ),
    Fault(
        "numbers that are not finite are hidden (nan_to_num)",
        "core/merge.py",
        "return torch.cat([x[:, :prefix], kept, merged.to(x.dtype)], dim=1)",
        "return torch.cat([x[:, :prefix], kept, merged.to(x.dtype)], dim=1).nan_to_num()",
        NUMERICS,
    ),
    Fault(
        "the class token is merged too (off by one in the prefix)",
        "core/merge.py",
        "selection.dropped], dim=1) + prefix",
        "selection.dropped], dim=1) + prefix - 1",
        LAWS,
    ),
    Fault(
        "a ratio is rounded down in binary: 0.29 of 100 is 28",
        "planning.py",
        "keep * num_patches + 1e-9",
        "keep * num_patches",
        ("tests/test_plan.py",),
    ),
    Fault(
        "a gradient through the choice",
        "core/score.py",
        "    with torch.no_grad(), context.cache:\n        y, token = x.detach(), None",
        "    with context.cache:\n        y, token = x, None",
        LAWS,
    ),
    Fault(
        "looking ahead draws dropout, so that a step is not what it was without",
        "core/score.py",
        "y = block(y, run=look_ahead) if context.ahead_by_parts else block(y)",
        "y = block(y)",
        ("tests/core", "tests/hosts/open_clip/test_open_clip.py", *THREADS),
    ),
    Fault(
        "removing leaves attributes behind",
        "patching/swap.py",
        '            if name == ATTRIBUTE or name.startswith(ATTRIBUTE + "_"):',
        "            if name == ATTRIBUTE:",
        (*EXCEPTIONS, "tests/patching", "tests/hosts/open_clip/test_open_clip.py"),
    ),
    Fault(
        "a copy follows the progress of the original (EMA copies)",
        "patching/progress.py",
        "        self.__dict__.update(state)\n        self._follow()",
        "        self.__dict__.update(state)",
        ("tests/patching",),
    ),
    Fault(
        "evaluation prunes (the flag of training is not asked)",
        "patching/pruner.py",
        "training = module.training if training is None else training\n",
        "training = True\n",
        ("tests/patching", "tests/hosts/open_clip/test_open_clip.py"),
    ),
    Fault(
        "a cache without the schedule: the warmup has no effect",
        "patching/pruner.py",
        "    config = config_at(level, config, num_patches)\n    return plan(",
        "    return plan(",
        ("tests/patching",),
    ),
    Fault(
        "a merged token gets the position of the smallest weight",
        "core/merge.py",
        "selection.weights.argmax(dim=1, keepdim=True)",
        "selection.weights.argmin(dim=1, keepdim=True)",
        (*LAWS, "tests/hosts/open_clip/test_rotary.py"),
    ),
    Fault(
        "a checkpoint executes what it holds (torch.load before 2.6)",
        "patching/checkpoints.py",
        "weights_only=not trusted",
        "weights_only=False",
        FILES,
    ),
    Fault(
        "YAML that makes objects (yaml.load)",
        "config/file.py",
        "yaml.safe_load(text)",
        "yaml.unsafe_load(text)",
        CONFIGS,
    ),
    Fault(
        "aliases of YAML explode (a billion laughs)",
        "errors.py",
        "return _short.repr(value)",
        "return repr(value)",
        CONFIGS,
    ),
    Fault(
        "markup in a caption becomes a part of the page",
        "visualize/html.py",
        "title = escape(shown.row_title(row))",
        "title = shown.row_title(row)",
        FILES,
    ),
    Fault(
        "rows that were cut off count (no check of the length)",
        "check/store.py",
        "path.stat().st_size // kind.itemsize",
        "-(-path.stat().st_size // kind.itemsize)",
        (*FILES, "tests/check/test_store.py"),
    ),
)


def as_mutants() -> Iterator[tuple[Fault, Mutant]]:
    """Yield the faults as mutants."""
    for fault in FAULTS:
        text = (ROOT / PACKAGE / fault.path).read_text()
        if text.count(fault.before) != 1:
            raise ValueError(f"{fault.path} has {fault.before!r} {text.count(fault.before)} times")
        line = text[: text.index(fault.before)].count("\n") + 1
        code = text.replace(fault.before, fault.after)
        yield fault, Mutant(fault.path, line, "planted", fault.before, fault.after, code)
