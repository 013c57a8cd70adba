"""Train a small CLIP on real pairs with OpenCLIP's own, unmodified command, pruned by ELIP.

Run it with `make demo`. It writes the data, runs the command that it prints, and reports
tokens per block, retrieval on held-out pairs, the step time beside the unpruned model, and a
picture of the patches that survive.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
os.environ["ELIP_MODEL_CONFIGS"] = str(HERE / "models")

import open_clip  # noqa: E402
import torch  # noqa: E402

import elip_plugin  # noqa: E402
from elip_plugin.data import write_openmoji  # noqa: E402

BASE = "ViT-emoji"
MODEL = f"elip-{BASE}"
BATCH = 128


def command(data: Any, out: Path, epochs: int) -> list[str]:
    """Return the training command, which is OpenCLIP's own."""
    (held_out,) = (data.out / "held_out").glob("*.tar")
    return [
        sys.executable, "-m", "open_clip_train.main", "--model", MODEL,
        "--dataset-type", "webdataset",
        "--train-data", data.train_pattern, "--train-num-samples", str(data.train),
        "--val-data", str(held_out), "--val-num-samples", str(data.held_out),
        "--val-frequency", str(epochs), "--batch-size", str(BATCH), "--epochs", str(epochs),
        "--lr", "1e-3", "--warmup", "20", "--workers", "1", "--precision", "fp32",
        "--log-every-n-steps", "9", "--logs", str(out), "--name", "run",
    ]  # fmt: skip


def train(data: Any, out: Path, epochs: int) -> dict[str, float]:
    """Run the command, show its progress lines, and return its own last evaluation."""
    args = command(data, out, epochs)
    print("$ " + " ".join(["python", *args[1:]]), flush=True)
    log = ""
    with subprocess.Popen(
        args, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            log += line
            if "Epoch" in line or "ELIP" in line or "Error" in line:
                print("  " + line.split("| INFO | ")[-1].rstrip(), flush=True)
    if process.returncode:
        sys.exit(f"the training command failed:\n{log[-3000:]}")
    lines = (out / "run" / "checkpoints" / "results.jsonl").read_text().splitlines()
    last: dict[str, float] = json.loads(lines[-1])
    return last


def tokens_per_block(model: Any) -> list[int]:
    """Count what really enters each main block in one training forward."""
    seen: list[int] = []

    def record(module: Any, args: Any) -> None:
        if torch.is_grad_enabled():  # looking ahead runs without gradient
            seen.append(args[0].shape[1])

    blocks = model.visual.transformer.resblocks
    hooks = [block.register_forward_pre_hook(record) for block in blocks]
    model.train()(*batch(2))
    for hook in hooks:
        hook.remove()
    return seen


def batch(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random images and token ids: times and counts do not depend on them."""
    return torch.randn(size, 3, 64, 64), torch.randint(1, 49000, (size, 24))


def training_step(model: Any) -> Any:
    """Return a function that does one whole training step of the model."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    loss = open_clip.ClipLoss()
    images, texts = batch(BATCH)

    def step() -> None:
        optimizer.zero_grad()
        loss(**model(images, texts)).backward()
        optimizer.step()

    return step


def time_in_turn(
    steps: Mapping[str, Callable[[], None]], rounds: int, uncounted: int = 2
) -> dict[str, list[float]]:
    """Time steps round by round, so that a drifting machine treats all alike; seconds by name."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(uncounted + rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - start)
    return {name: seconds[uncounted:] for name, seconds in times.items()}


def report(results: dict[str, float], rounds: int) -> None:
    """Print what the run shows."""
    model: Any = open_clip.create_model(MODEL, output_dict=True)
    counted = tokens_per_block(model)
    plan = elip_plugin.find_handle(model).plan
    assert counted == list(plan.tokens), (counted, plan.tokens)
    print("\nTokens inside each of the 12 blocks, counted in a training forward:")
    print("  " + " ".join(map(str, counted)) + f"   ({plan.removed:.0%} of them gone)")
    print("\nRetrieval on 500 held-out pairs, all tokens (chance: R@1 0.2%, R@5 1.0%):")
    for way, key in (("image to text", "image_to_text"), ("text to image", "text_to_image")):
        print(f"  {way}:  R@1 {results[key + '_R@1']:6.1%}   R@5 {results[key + '_R@5']:6.1%}")

    models = {"unpruned": open_clip.create_model(BASE, output_dict=True), "paper": model}
    fast: Any = open_clip.create_model(BASE, output_dict=True)
    elip_plugin.apply(fast, "fast")
    models["fast"] = fast
    times = time_in_turn({k: training_step(m.train()) for k, m in models.items()}, rounds)
    torch_version = torch.__version__.partition("+")[0]
    print(
        f"\nWhole training step, batch {BATCH}, fp32, {torch.get_num_threads()} threads of "
        f"{platform.machine()}, torch {torch_version},\n"
        f"median of {rounds} rounds in turn (lowest to highest ratio):"
    )
    for name, seconds in times.items():
        ratios = [a / b for a, b in zip(seconds, times["unpruned"], strict=True)]
        median, ratio = statistics.median(seconds), statistics.median(ratios)
        spread = f"({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"  {name:9} {median:5.2f} s   {ratio:.2f} of unpruned {spread}")


def picture(data: Any, run: Path, page: Path) -> None:
    """Draw which patches of a held-out picture survive, by its caption and by another text."""
    pair = json.loads((data.out / "held_out.json").read_text())[0]
    checkpoint = max((run / "checkpoints").glob("epoch_*.pt"), key=lambda p: p.stat().st_mtime)
    args = [
        "--model", MODEL, "--checkpoint", str(checkpoint),
        "--image", str(data.out / pair["image"]),
        "--text", pair["caption"], "--text", "an emoji of microphone", "-o", str(page),
    ]  # fmt: skip
    subprocess.run([sys.executable, "-m", "elip_plugin", "show", *args], check=True)


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"))
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    data = write_openmoji(args.out / "openmoji", overwrite=True)
    print(f"{data.pairs} pairs in {data.out}. {data.attribution}", flush=True)
    logs = args.out / "logs"
    done = logs / "run"
    if done.exists():  # OpenCLIP refuses to write over a run; keep the old one
        done.rename(logs / f"run-{len(list(logs.iterdir()))}")
    results = train(data, logs, args.epochs)
    report(results, args.rounds)
    picture(data, done, args.out / "look.html")
    print(f"\nThe run: {done} (log, checkpoints, results.jsonl)")
    print(f"Which patches survive: {args.out / 'look.html'} (open it in a browser)")


if __name__ == "__main__":
    main()
