"""Fine-tune ALBEF for retrieval with LAVIS' own class, pruned by one word of its config.

    python examples/lavis_finetuning.py --steps 5

Small and random here, so that it runs anywhere; without the keys marked "small" it is LAVIS' own
`albef_retrieval`, with its weights.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from lavis.common.registry import registry
from omegaconf import OmegaConf

import elip_plugin

CAPTIONS = ["a red cat", "two dogs on a sofa", "a blue car", "nothing at all"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]  # of BERT's tokenizer


def main() -> None:
    """Fine-tune for some steps on random pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3)
    steps = parser.parse_args().steps

    elip_plugin.list_models("lavis")  # makes the names known, if the start-up file has not
    arch = registry.get_model_class("elip_albef_retrieval")  # was: albef_retrieval
    section = OmegaConf.load(arch.default_config_path("coco")).model
    section.elip = {"preset": "half", "final_unpruned": 0.5}
    with tempfile.TemporaryDirectory() as folder:
        vocab = Path(folder) / "vocab.txt"
        vocab.write_text("\n".join([*SPECIAL, *sorted(set(" ".join(CAPTIONS).split()))]))
        small = {
            "load_finetuned": False,
            "pretrained": None,
            "init": "random",
            "tokenizer": str(vocab),
            "vit": {"width": 64, "depth": 12, "heads": 2, "patch_size": 8},
            "image_size": 64,
            "bert": {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 128},
            "queue_size": len(CAPTIONS),
        }
        model = arch.from_config(OmegaConf.merge(section, small))
    handle = elip_plugin.find_handle(model)
    print(handle.plan.summary())

    torch.manual_seed(0)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    samples = {
        "image": torch.randn(len(CAPTIONS), 3, 64, 64),
        "text_input": CAPTIONS,
        "image_id": torch.arange(len(CAPTIONS)),
        "epoch": 0,
        "iters": 0,
        "num_iters_per_epoch": steps,
    }
    model.train()
    for step in range(steps):
        handle.update_progress(step, steps)
        loss = model({**samples, "iters": step})["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step}: loss {loss.item():.3f}")


if __name__ == "__main__":
    main()
