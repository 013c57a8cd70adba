"""Small models of LAVIS' own parts, and their losses: nothing of ours.

`python tests/lavis_stock.py` writes the known answers; it runs beside LAVIS' own pins.
"""

from __future__ import annotations

import json
import tempfile
import zlib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest import mock

import torch

ANSWERS = Path(__file__).parent / "golden" / "lavis_losses.json"
PINNED = "4.26.1"

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY += ["a", "picture", "of", "cat", "dog", "sofa", "on", "the", "two", "red", "blue"]
VOCABULARY += ["sits", "runs", "what", "is", "this", "it", "under", "and"]
VOCABULARY += [f"word{i}" for i in range(60)]  # sampling chooses among the best 50
CAPTIONS = ["a cat on the sofa", "two dog runs", "the red dog sits", "a blue cat and a dog"]
WIDTH = 48
QUEUE = 8

# Narrow and shallow, without dropout.
BERT: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 40,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "encoder_width": 64,
    "add_cross_attention": True,
    "add_type_embeddings": False,
    "pad_token_id": 0,
}


def bert_config(**options: Any) -> Any:
    from transformers import BertConfig

    return BertConfig(vocab_size=len(VOCABULARY), **{**BERT, **options})


def albef_config() -> Any:
    config = bert_config()
    config.fusion_layer = 2
    return config


def blip_config(**options: Any) -> Any:
    """BLIP's tokenizer adds two tokens."""
    config = bert_config(**options)
    config.vocab_size += 2
    return config


def tower() -> Any:
    from lavis.models.vit import VisionTransformerEncoder

    vit = VisionTransformerEncoder(img_size=64, embed_dim=64, depth=4, num_heads=4)
    vit.vision_width = 64
    return vit


def albef_pretrain() -> Any:
    from lavis.models import AlbefPretrain
    from lavis.models.med import BertForMaskedLM

    text = BertForMaskedLM(albef_config())
    return AlbefPretrain(tower(), text, queue_size=QUEUE, embed_dim=16)


def albef_retrieval() -> Any:
    from lavis.models import AlbefRetrieval
    from lavis.models.med import XBertEncoder

    text = XBertEncoder(albef_config(), add_pooling_layer=False)
    return AlbefRetrieval(tower(), text, queue_size=QUEUE, embed_dim=16)


def albef_classification() -> Any:
    from lavis.models import AlbefClassification
    from lavis.models.med import XBertEncoder

    return AlbefClassification(tower(), XBertEncoder(albef_config(), add_pooling_layer=False), 3)


def blip_pretrain() -> Any:
    """Its vocabulary grows inside, as that of BERT's published weights does."""
    from lavis.models import BlipPretrain
    from lavis.models.med import XBertEncoder, XBertLMHeadDecoder

    text = XBertEncoder(bert_config(), add_pooling_layer=False)
    return BlipPretrain(
        tower(), text, XBertLMHeadDecoder(bert_config()), queue_size=QUEUE, embed_dim=16
    )


def blip_retrieval() -> Any:
    from lavis.models import BlipRetrieval
    from lavis.models.med import XBertEncoder

    text = XBertEncoder(blip_config(), add_pooling_layer=False)
    return BlipRetrieval(tower(), text, queue_size=QUEUE, embed_dim=16)


def blip_classification() -> Any:
    """Its own loss fails in LAVIS 1.0.2, on any stack: `BlipIntermediateOutput` lacks a field."""
    from lavis.models import BlipClassification
    from lavis.models.med import XBertEncoder

    class Mended(BlipClassification):
        def forward(self, samples: dict[str, Any], is_train: bool = True) -> dict[str, Any]:
            out = super().forward(samples, is_train=False)
            return {"loss": torch.nn.functional.cross_entropy(out["predictions"], out["targets"])}

    return Mended(tower(), XBertEncoder(blip_config(), add_pooling_layer=False), 3)


def blip_caption() -> Any:
    from lavis.models import BlipCaption
    from lavis.models.med import XBertLMHeadDecoder

    return BlipCaption(tower(), XBertLMHeadDecoder(blip_config()), prompt="a picture of ")


def blip_vqa() -> Any:
    from lavis.models import BlipVQA
    from lavis.models.med import XBertEncoder, XBertLMHeadDecoder

    text = XBertEncoder(blip_config(), add_pooling_layer=False)
    return BlipVQA(tower(), text, XBertLMHeadDecoder(blip_config(encoder_width=WIDTH)))


TRAINED: dict[str, Callable[[], Any]] = {
    make.__name__: make
    for make in (
        albef_pretrain,
        albef_retrieval,
        albef_classification,
        blip_pretrain,
        blip_retrieval,
        blip_classification,
        blip_caption,
        blip_vqa,
    )
}


def local_tokenizer(folder: Path) -> Any:
    """BERT's tokenizer with a few words, in place of the download."""
    from transformers import BertTokenizer

    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    return mock.patch.object(
        BertTokenizer,
        "from_pretrained",
        lambda *args, **kwargs: BertTokenizer(vocab_file=str(folder / "vocab.txt")),
    )


def fill(model: Any, scale: float = 0.05) -> Any:
    """Weights that depend on their names alone, whatever the libraries' initialisations draw."""
    tensors = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **{name: b for name, b in model.named_buffers() if name.endswith(("e_queue", "t_queue"))},
    }
    with torch.no_grad():
        for name, tensor in sorted(tensors.items()):
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            drawn = torch.randn(tensor.shape, generator=generator)
            if name.endswith("_queue"):
                tensor.copy_(torch.nn.functional.normalize(drawn, dim=0))
            elif name != "temp":  # a norm's weights are around 1
                norm = "norm" in name.lower() and name.endswith("weight")
                tensor.copy_(norm + scale * drawn)
    return model


def samples() -> dict[str, Any]:
    """A batch that every model understands, in the middle of the ramp of alpha."""
    generator = torch.Generator().manual_seed(1)
    return {
        "image": torch.randn(4, 3, 64, 64, generator=generator),
        "text_input": list(CAPTIONS),
        "image_id": torch.tensor([1, 2, 3, 1]),
        "label": torch.tensor([0, 2, 1, 1]),
        "answer": ["a cat", "dog", "two", "the red sofa", "blue"],
        "weight": torch.tensor([1.0, 0.5, 0.5, 1.0, 1.0]),
        "n_answers": torch.tensor([1, 2, 1, 1]),
        "epoch": 0,
        "iters": 5,
        "num_iters_per_epoch": 10,
    }


def losses(make: Callable[[], Any]) -> list[float]:
    """The losses of three training steps, and the norm of the last step's gradients."""
    model = fill(make()).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.05)
    out = []
    torch.manual_seed(0)  # hard negatives and masked words are drawn
    for _ in range(3):
        optimizer.zero_grad()
        loss = model(samples())["loss"]
        loss.backward()
        optimizer.step()
        out.append(loss.item())
    gradients = [p.grad.norm() for p in trained if p.grad is not None]
    return [*out, torch.stack(gradients).norm().item()]


if __name__ == "__main__":
    assert metadata.version("transformers") == PINNED, "known answers come from LAVIS' own pins"
    import lavis  # noqa: F401

    with tempfile.TemporaryDirectory() as folder, local_tokenizer(Path(folder)):
        known = {
            "losses": {name: losses(make) for name, make in TRAINED.items()},
        }
    ANSWERS.write_text(json.dumps(known).replace('], "', '],\n "') + "\n")
