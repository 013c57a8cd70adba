"""What is exported: a tower as a module of its own, and as a graph with a dynamic batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from elip_plugin.errors import UnsupportedModelError
from elip_plugin.hosts.base import HostModel
from elip_plugin.patching.checkpoints import reason_of
from elip_plugin.patching.install import find_pruner


class ImageTower(nn.Module):
    """From images [B, 3, height, width] to features [B, E]."""

    def __init__(self, host_model: HostModel) -> None:
        super().__init__()
        self.model, self.host_model = host_model.model, host_model

    def forward(self, images: Tensor) -> Tensor:
        """Encode images."""
        return self.host_model.encode_image(images)


class TextTower(nn.Module):
    """From tokens, in the order of `names` if there are several tensors, to features [B, E]."""

    def __init__(self, host_model: HostModel, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.host_model, self.names = host_model.model, host_model, names

    def forward(self, *tokens: Tensor) -> Tensor:
        """Encode texts."""
        given: Any = dict(zip(self.names, tokens, strict=True)) if self.names else tokens[0]
        return self.host_model.encode_text(given)


def example_texts(host_model: HostModel, batch: int) -> tuple[tuple[str, ...], tuple[Tensor, ...]]:
    """Return names of the text tower's inputs, none where it takes one tensor, and an example."""
    tokens = host_model.example_batch(batch)[1]
    if isinstance(tokens, Tensor):
        return (), (tokens,)
    if isinstance(tokens, dict):
        return tuple(tokens), tuple(tokens.values())
    raise UnsupportedModelError(
        f"{host_model.name} reads texts as they are, not as tensors: only its image tower can be "
        "exported"
    )


def why_not(host_model: HostModel) -> str:
    """Say as a clause why a model's image tower cannot be exported; "" if it can be."""
    if host_model.no_export:
        return host_model.no_export
    pruner = find_pruner(host_model.model)
    config, reducer = pruner.config, pruner.reducer
    if reducer.draws:
        return f"its reducer {reducer.name!r} draws by chance what it keeps, in evaluation too"
    if reducer.text_alone:
        return f"its reducer {reducer.name!r} chooses by a text, and an exported tower has none"
    if config.eval_mode == "text":
        return "its eval_mode 'text' prunes by a text, and an exported tower has images alone"
    if config.eval_mode == "full":
        return (
            "its eval_mode 'full' keeps all tokens, so nothing would be saved: name a model as "
            "elip-embed-X, or give a plan with eval_mode 'image'"
        )
    return ""


def capture(module: nn.Module, example: tuple[Tensor, ...]) -> ExportedProgram:
    """Export a tower in evaluation mode with a dynamic batch, by an example of two inputs or more.

    Raises an UnsupportedModelError with the reason if torch.export cannot follow the tower.
    """
    batch = torch.export.Dim("batch", min=1)
    dims: Any = tuple({0: batch} for _ in example)
    shapes = (dims,) if isinstance(module, TextTower) else dims
    try:
        with torch.no_grad():
            program = torch.export.export(module, example, dynamic_shapes=shapes)
    except Exception as error:  # of as many kinds as there are obstacles
        raise UnsupportedModelError(
            f"torch.export cannot follow this tower with a dynamic batch: {reason_of(error)}"
        ) from error
    return _without_unused(program)


def _without_unused(program: ExportedProgram) -> ExportedProgram:
    """Drop the weights that no operation reads: those of the model's other tower."""
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    kept = []
    for spec in program.graph_signature.input_specs:
        node = nodes[spec.arg.name]
        if spec.kind not in (InputKind.PARAMETER, InputKind.BUFFER) or node.users:
            kept.append(spec)
            continue
        program.graph.erase_node(node)
        if spec.target is not None:
            program.state_dict.pop(spec.target, None)
            program.constants.pop(spec.target, None)
    program.graph_signature.input_specs[:] = kept
    program.graph_module.recompile()
    return program
