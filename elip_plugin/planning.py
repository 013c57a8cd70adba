"""Config + patch count + depth -> how many tokens each block sees, and what that costs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from elip_plugin.config import ElipConfig, Stage
from elip_plugin.core.stage import PlannedStage, block_macs
from elip_plugin.errors import PlanError, join_faults
from elip_plugin.reducers import Reducer, find_reducer

__all__ = ["Plan", "PlannedStage", "kept_count", "plan", "scale"]


@dataclass(frozen=True)
class Plan:
    """What a configuration does to one tower.

    Attributes:
        num_patches: Patches N that enter block 0.
        prefix: Prefix tokens P (class token, registers), which are never pruned.
        stages: The stages that prune, in order; skipped ones are left out.
        tokens: Sequence length inside each block, prefix included; one entry per block.
        reducer: The reducer, which knows what choosing costs.
        by_block: The stages by their block.
    """

    num_patches: int
    prefix: int
    stages: tuple[PlannedStage, ...]
    tokens: tuple[int, ...]
    reducer: Reducer = field(default_factory=lambda: find_reducer("elip"))
    by_block: dict[int, PlannedStage] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Index the stages."""
        # No cached_property: its lock, up to Python 3.11, breaks the graph of a compiled model.
        object.__setattr__(self, "by_block", {stage.block: stage for stage in self.stages})

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.tokens)

    @property
    def removed(self) -> float:
        """Share of the tower's token-layers that pruning removes, 0 to 1."""
        full = self.depth * (self.prefix + self.num_patches)
        return 1 - sum(self.tokens) / full

    def forward_cost(self, width: int, mlp_ratio: float = 4.0) -> float:
        """Count one forward of the blocks, relative to no pruning.

        Args:
            width: Tower width D.
            mlp_ratio: Hidden width of a block's MLP over D.

        Returns:
            Multiply-adds of main blocks and lookahead over those of an unpruned tower.
        """
        main, choosing = self._costs(width, mlp_ratio)
        return main + choosing

    def train_cost(self, width: int, mlp_ratio: float = 4.0) -> float:
        """Count one training step of the blocks (backward = two forwards), as `forward_cost` does.

        Lookahead has no backward.
        """
        main, choosing = self._costs(width, mlp_ratio)
        return main + choosing / 3

    def _costs(self, width: int, mlp_ratio: float) -> tuple[float, float]:
        """Count the main blocks, and choosing, relative to no pruning."""
        reducer = self.reducer
        full = self.depth * block_macs(self.prefix + self.num_patches, width, mlp_ratio)
        main = sum(block_macs(tokens, width, mlp_ratio) for tokens in self.tokens)
        if reducer.inside_blocks:
            gone = sum(stage.tokens_in - stage.tokens_out for stage in self.stages)
            main -= gone * 2 * mlp_ratio * width**2
        choosing = sum(reducer.selection_macs(stage, width, mlp_ratio) for stage in self.stages)
        return main / full, choosing / full

    def summary(self) -> str:
        """Describe the plan in one line.

        Returns:
            Tokens at the input, after each stage and where they come back, and the share removed.
        """
        text = f"{self.prefix + self.num_patches} tokens"
        for stage in self.stages:
            text += f" -> {stage.tokens_out} at block {stage.block}"
            if stage.until is not None:
                text += f" -> {stage.tokens_in} at block {stage.until}"
        return f"{text}; {self.removed:.0%} of {self.depth} blocks' tokens removed"


def plan(
    config: ElipConfig, *, num_patches: int, depth: int, prefix: int = 1, skip_idle: bool = False
) -> Plan:
    """Resolve a configuration against a tower.

    Args:
        config: What to prune.
        num_patches: Patches N that enter block 0 (after any patch dropout).
        depth: Number of blocks L.
        prefix: Prefix tokens P.
        skip_idle: Leave out a stage that would not shrink the sequence, instead of refusing it.

    Returns:
        The resolved plan.

    Raises:
        PlanError: Names every stage that cannot hold, with numbers.

    Example:
        >>> made = plan(ElipConfig.preset("fast"), num_patches=196, depth=12)
        >>> made.tokens
        (197, 197, 178, 178, 129, 129, 129, 129, 129, 129, 80, 80)
    """
    if num_patches < 1 or depth < 1 or prefix < 0:
        raise PlanError(
            f"an ELIP plan is for a tower of 1 or more patches and blocks and 0 or more prefix "
            f"tokens, got {num_patches} patches, {depth} blocks, {prefix} prefix tokens"
        )
    faults: list[str] = []
    stages: list[PlannedStage] = []
    present, last_block, back = num_patches, -1, 0
    for i, given in enumerate(config.stages):
        stage = scale(given, config.reference_depth, depth)
        where = f"stage {i} (block {stage.block})"
        if stage.block >= depth:
            faults.append(f"{where}: the tower has blocks 0 to {depth - 1}")
            continue
        if stage.block <= last_block:
            faults.append(f"{where}: must come after block {last_block} of the stage before")
        if stage.block + stage.lookahead > depth:
            faults.append(
                f"{where}: lookahead {stage.lookahead} passes the last block; "
                f"at most {depth - stage.block} of {depth} blocks are left"
            )
        if last_block < stage.block < back:
            faults.append(
                f"{where}: must not come before block {back}, where the tokens of the stage before "
                "come back"
            )
        until = stage.until
        if until is not None and not stage.block < until < depth:
            faults.append(
                f"{where}: its tokens can come back before one of the blocks {stage.block + 1} to "
                f"{depth - 1}, and until is {until}"
            )
        last_block, back = stage.block, until or 0
        if stage.keep == 1:  # 1.0: the integer is refused by the config
            continue
        keep = kept_count(stage.keep, num_patches)
        merge = config.merge and until is None
        left = keep + merge
        if skip_idle and left >= present:
            continue
        if keep < 1 or left >= present:
            merged = " + 1 merged" if merge else ""
            faults.append(
                f"{where}: keep {stage.keep} of {num_patches} patches gives {keep}{merged}, "
                f"which must be at least 1 and below the {present} tokens present"
            )
            continue
        tokens_in, tokens_out = prefix + present, prefix + left
        stages.append(
            PlannedStage(stage.block, stage.lookahead, keep, tokens_in, tokens_out, until)
        )
        present = left if until is None else present
    if faults:
        tower = f"ELIP plan for {num_patches} patches and {depth} blocks"
        raise PlanError(join_faults(tower, faults))
    done = config.reducer.resolve_stages(
        tuple(stages), num_patches=num_patches, depth=depth, prefix=prefix
    )
    tokens = [prefix + num_patches] * depth
    for planned in done:
        tokens[planned.block :] = [planned.tokens_out] * (depth - planned.block)
        if planned.until is not None:
            tokens[planned.until :] = [planned.tokens_in] * (depth - planned.until)
    made = tuple(tokens)
    return Plan(num_patches, prefix, done, made, config.reducer)


def kept_count(keep: float, num_patches: int) -> int:
    """Turn a stage's `keep`, a ratio or a count, into a count K: floor(keep * N) for a ratio."""
    if isinstance(keep, int):
        return keep
    return math.floor(keep * num_patches + 1e-9)  # 0.29 * 100 is 28.999... in binary


def scale(stage: Stage, reference_depth: int | None, depth: int) -> Stage:
    """Rescale a stage, written for a reference depth, to a tower's depth L, halves rounded up.

    Its lookahead ends at the last block. Without a reference depth it stays as it is.
    """
    if reference_depth is None or reference_depth == depth:
        return stage
    depths = (depth, reference_depth)
    block, lookahead = _rescale(stage.block, *depths), _rescale(stage.lookahead, *depths)
    until = None if stage.until is None else _rescale(stage.until, *depths)
    return Stage(block, max(1, min(lookahead, depth - block)), stage.keep, until)


def _rescale(blocks: int, depth: int, reference_depth: int) -> int:
    return (2 * blocks * depth + reference_depth) // (2 * reference_depth)
