"""Token counts, costs and refusals of a plan, against hand counts and exact fractions."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from typing import Any

import pytest

from elip_plugin.config import PRESETS, ElipConfig, Stage
from elip_plugin.errors import ElipError, PlanError
from elip_plugin.planning import Plan, kept_count, plan, scale

B16 = {"num_patches": 196, "depth": 12}
B32 = {"num_patches": 49, "depth": 12}


def config_of(*stages: tuple[int, int, float], **fields: Any) -> ElipConfig:
    return ElipConfig(stages=tuple(Stage(*stage) for stage in stages), **fields)


def tokens_of(*stages: tuple[int, int, float], merge: bool = True, **tower: int) -> list[int]:
    return list(plan(config_of(*stages, merge=merge), **{**B16, **tower}).tokens)


def refusal(config: ElipConfig, **tower: int) -> str:
    with pytest.raises(PlanError) as caught:
        plan(config, **{**B16, **tower})
    return str(caught.value)


# Known counts.


@pytest.mark.parametrize("name", ["paper", "fast"])
def test_presets_on_vit_b16(name: str) -> None:
    planned = plan(PRESETS[name], **B16)
    assert list(planned.tokens) == [197] * 2 + [178] * 2 + [129] * 6 + [80] * 2
    assert [stage.keep for stage in planned.stages] == [176, 127, 78]
    assert f"{planned.removed:.0%}" == "29%"
    assert planned.depth == 12


def test_paper_shrinks_vit_b32_at_every_stage() -> None:
    planned = plan(PRESETS["paper"], **B32)
    assert list(planned.tokens) == [50] * 2 + [46] * 2 + [33] * 6 + [21] * 2


def test_stages_carry_resolved_numbers() -> None:
    planned = plan(PRESETS["paper"], **B16)
    rows = [(s.block, s.lookahead, s.keep, s.tokens_in, s.tokens_out) for s in planned.stages]
    assert rows == [(2, 2, 176, 197, 178), (4, 6, 127, 178, 129), (10, 2, 78, 129, 80)]
    assert (planned.num_patches, planned.prefix) == (196, 1)


def test_summary_tells_the_story_in_one_line() -> None:
    text = plan(PRESETS["paper"], **B16).summary()
    assert text == (
        "197 tokens -> 178 at block 2 -> 129 at block 4 -> 80 at block 10; "
        "29% of 12 blocks' tokens removed"
    )


def test_no_stage_removes_nothing_and_costs_the_same() -> None:
    planned = plan(config_of(), **B16)
    assert planned.tokens == (197,) * 12
    assert planned.removed == 0
    assert planned.forward_cost(768) == planned.train_cost(768) == 1


def test_without_merging_one_token_fewer_remains() -> None:
    stages = [(2, 1, 0.5), (4, 1, 0.25)]
    assert tokens_of(*stages) == [197] * 2 + [100] * 2 + [51] * 8
    assert tokens_of(*stages, merge=False) == [197] * 2 + [99] * 2 + [50] * 8


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_prefix_is_added_and_never_pruned(prefix: int) -> None:
    planned = plan(PRESETS["paper"], **B16, prefix=prefix)
    assert planned.tokens == tuple(prefix + n for n in [196] * 2 + [177] * 2 + [128] * 6 + [79] * 2)
    assert [stage.keep for stage in planned.stages] == [176, 127, 78]
    assert planned.prefix == prefix


def test_pruning_before_block_0_leaves_no_full_block() -> None:
    assert tokens_of((0, 1, 0.5)) == [100] * 12


def test_pruning_before_the_last_block_is_allowed() -> None:
    assert tokens_of((11, 1, 0.5)) == [197] * 11 + [100]


# Keep: ratio, count, 1.0.


def test_a_ratio_is_of_the_patches_at_the_input_at_every_stage() -> None:
    assert [s.keep for s in plan(config_of((1, 1, 0.5), (2, 1, 0.4)), **B16).stages] == [98, 78]


def test_a_count_is_kept_as_it_is() -> None:
    assert tokens_of((2, 1, 150), (5, 1, 2)) == [197] * 2 + [152] * 3 + [4] * 7


@pytest.mark.parametrize("patches", [10, 49, 196])
def test_a_count_does_not_depend_on_the_patches(patches: int) -> None:
    assert kept_count(7, patches) == 7


def test_a_ratio_of_1_skips_its_stage() -> None:
    planned = plan(config_of((2, 2, 0.9), (4, 6, 1.0), (10, 2, 0.4)), **B16)
    assert list(planned.tokens) == [197] * 2 + [178] * 8 + [80] * 2
    assert [stage.block for stage in planned.stages] == [2, 10]


@pytest.mark.parametrize(
    ("ratio", "patches", "kept"),
    [
        (0.29, 100, 29),  # 28.999999999999996 in binary
        (0.57, 100, 57),  # 56.99999999999999
        (0.58, 50, 29),  # 28.999999999999996
        (0.07, 100, 7),  # 7.000000000000001
        (0.35, 180, 63),
        (0.7, 196, 137),  # 137.2
        (0.999, 1000, 999),
        (0.9999, 1000, 999),
        (0.65, 196, 127),  # 127.4
        (0.01, 99, 0),
    ],
)
def test_floor_of_a_ratio_is_decimal(ratio: float, patches: int, kept: int) -> None:
    assert kept_count(ratio, patches) == kept


def test_floor_is_exact_for_every_percentage_and_grid() -> None:
    for percent in range(1, 100):
        for patches in [side**2 for side in range(1, 33)]:
            assert kept_count(percent / 100, patches) == percent * patches // 100


# Cost.


def test_costs_of_paper_match_the_table_of_the_method() -> None:
    planned = plan(PRESETS["paper"], **B16)
    assert 1.23 <= planned.forward_cost(768) <= 1.26
    assert planned.train_cost(768) == pytest.approx(0.88, abs=0.005)


def test_costs_of_fast_match_the_table_of_the_method() -> None:
    planned = plan(PRESETS["fast"], **B16)
    assert planned.forward_cost(768) == pytest.approx(0.72, abs=0.005)
    assert planned.train_cost(768) == pytest.approx(0.71, abs=0.005)


def test_costs_equal_a_count_by_hand() -> None:
    # Width 3, MLP ratio 2: a block of t tokens takes 4*9 t + 2*2*9 t + 2*3 t^2 multiply-adds;
    # a row takes 9 t (keys) + 3 t (logits).
    block = {t: 72 * t + 6 * t * t for t in (10, 6, 4)}
    stages = [(1, 3, 4), (3, 1, 2)]
    planned = plan(config_of(*stages), num_patches=9, depth=4)
    assert planned.tokens == (10, 6, 6, 4)
    main = block[10] + 2 * block[6] + block[4]
    ahead = 2 * block[10] + 10 * 12 + 6 * 12
    full = 4 * block[10]
    assert planned.forward_cost(3, mlp_ratio=2) == pytest.approx((main + ahead) / full)
    assert planned.train_cost(3, mlp_ratio=2) == pytest.approx((3 * main + ahead) / (3 * full))


def test_cost_counts_an_mlp_of_ratio_4_by_default() -> None:
    planned = plan(PRESETS["paper"], **B16)
    assert planned.forward_cost(768) == planned.forward_cost(768, mlp_ratio=4)
    assert planned.forward_cost(768) != planned.forward_cost(768, mlp_ratio=2)


# Other depths.

SCALED = {
    12: [(2, 2), (4, 6), (10, 2)],
    24: [(4, 4), (8, 12), (20, 4)],
    18: [(3, 3), (6, 9), (15, 3)],
    6: [(1, 1), (2, 3), (5, 1)],
    9: [(2, 2), (3, 5), (8, 1)],  # 1.5, 1.5; 3, 4.5; 7.5, 1.5 held to 1
    32: [(5, 5), (11, 16), (27, 5)],
}


@pytest.mark.parametrize("depth", SCALED)
def test_paper_is_rescaled_to_other_depths(depth: int) -> None:
    stages = plan(PRESETS["paper"], num_patches=196, depth=depth).stages
    assert [(stage.block, stage.lookahead) for stage in stages] == SCALED[depth]


def test_depth_3_puts_two_stages_on_one_block_and_one_past_the_end() -> None:
    text = refusal(PRESETS["paper"], depth=3)
    assert "ELIP plan for 196 patches and 3 blocks: 2 faults" in text
    assert "stage 1 (block 1): must come after block 1 of the stage before" in text
    assert "stage 2 (block 3): the tower has blocks 0 to 2" in text


def halves_up(value: Fraction) -> int:
    return math.floor(value + Fraction(1, 2))


@pytest.mark.parametrize("reference", [7, 12, 24])
def test_scale_follows_the_formula_for_every_depth(reference: int) -> None:
    for depth in set(range(1, 41)) - {reference}:
        for block in range(reference):
            for lookahead in range(1, reference - block + 1):
                b = halves_up(Fraction(block * depth, reference))
                n = max(1, min(halves_up(Fraction(lookahead * depth, reference)), depth - b))
                scaled = scale(Stage(block, lookahead, 0.5), reference, depth)
                assert scaled == Stage(b, n, 0.5)


@pytest.mark.parametrize("reference", [None, 12])
def test_scale_leaves_stages_of_the_same_or_no_depth(reference: int | None) -> None:
    stage = Stage(5, 9, 0.5)
    assert scale(stage, reference, 12) == stage


def test_stages_without_reference_depth_are_not_rescaled() -> None:
    stages = [(2, 2, 0.9), (4, 6, 0.65), (10, 2, 0.4)]
    planned = plan(config_of(*stages), num_patches=196, depth=24)
    assert [(s.block, s.lookahead) for s in planned.stages] == [(2, 2), (4, 6), (10, 2)]


# Refusals.


def test_plan_errors_are_caught_as_elip_and_value_errors() -> None:
    assert issubclass(PlanError, ElipError)
    assert issubclass(PlanError, ValueError)


def test_lookahead_past_the_last_block_is_refused() -> None:
    text = refusal(config_of((8, 5, 0.5)))
    assert text == (
        "ELIP plan for 196 patches and 12 blocks: stage 0 (block 8): lookahead 5 passes the "
        "last block; at most 4 of 12 blocks are left"
    )
    assert tokens_of((8, 4, 0.5)) == [197] * 8 + [100] * 4


def test_a_block_past_the_last_is_refused() -> None:
    text = refusal(config_of((12, 1, 0.5)))
    assert "stage 0 (block 12): the tower has blocks 0 to 11" in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("keep", "merge", "present"), [(195, True, 196), (196, False, 196), (500, True, 196)]
)
def test_a_stage_that_does_not_shrink_is_refused(keep: int, merge: bool, present: int) -> None:
    text = refusal(config_of((2, 1, keep), merge=merge))
    assert f"stage 0 (block 2): keep {keep} of 196 patches gives {keep}" in text
    assert f"below the {present} tokens present" in text
    assert ("1 merged" in text) is merge


@pytest.mark.parametrize(("keep", "merge", "left"), [(194, True, 196), (195, False, 196)])
def test_a_stage_may_drop_as_little_as_it_can(keep: int, merge: bool, left: int) -> None:
    assert tokens_of((2, 1, keep), merge=merge)[-1] == left


def test_a_later_stage_must_shrink_what_the_earlier_left() -> None:
    text = refusal(config_of((2, 1, 0.5), (4, 1, 0.5)))
    assert "stage 1 (block 4): keep 0.5 of 196 patches gives 98 + 1 merged" in text
    assert "below the 99 tokens present" in text


def test_a_ratio_that_keeps_no_token_is_refused() -> None:
    text = refusal(config_of((2, 1, 0.01)), num_patches=49)
    assert "keep 0.01 of 49 patches gives 0 + 1 merged, which must be at least 1" in text


@pytest.mark.parametrize("blocks", [(4, 2), (2, 2), (2, 10, 4)])
def test_blocks_that_do_not_increase_are_refused(blocks: tuple[int, ...]) -> None:
    text = refusal(config_of(*((block, 1, 0.9 - i / 4) for i, block in enumerate(blocks))))
    last, before = len(blocks) - 1, blocks[-2]
    assert text.endswith(
        f"stage {last} (block {blocks[-1]}): must come after block {before} of the stage before"
    )


def test_stages_out_of_order_after_rescaling_are_refused() -> None:
    together = config_of((5, 1, 0.9), (6, 1, 0.5), reference_depth=12)
    assert plan(together, num_patches=196, depth=12).tokens[5:7] == (178, 100)
    text = refusal(together, depth=4)
    assert "stage 1 (block 2): must come after block 2 of the stage before" in text


def test_every_fault_is_named_in_one_error() -> None:
    config = config_of((1, 2, 0.9), (2, 11, 195), (3, 1, 0.95), (11, 2, 0.4), (12, 1, 0.3))
    lines = refusal(config).split("\n")
    expected = [
        "stage 1 (block 2): lookahead 11 passes the last block; at most 10 of 12 blocks are left",
        "stage 1 (block 2): keep 195 of 196 patches gives 195 + 1 merged, "
        "which must be at least 1 and below the 177 tokens present",
        "stage 2 (block 3): keep 0.95 of 196 patches gives 186 + 1 merged, "
        "which must be at least 1 and below the 177 tokens present",
        "stage 3 (block 11): lookahead 2 passes the last block; at most 1 of 12 blocks are left",
        "stage 4 (block 12): the tower has blocks 0 to 11",
    ]
    assert lines[0] == "ELIP plan for 196 patches and 12 blocks: 5 faults"
    assert lines[1:] == [f"  {i}. {fault}" for i, fault in enumerate(expected, 1)]


def test_a_skipped_stage_is_still_checked_for_its_place() -> None:
    assert "lookahead 5" in refusal(config_of((10, 5, 1.0)))


# Laws over many configurations.


def random_config(rng: random.Random) -> ElipConfig:
    blocks = sorted(rng.sample(range(13), rng.randint(1, 3)))
    keeps = sorted((rng.randint(1, 100) / 100 for _ in blocks), reverse=True)
    if rng.random() < 0.3:
        keeps[-1] = rng.randint(2, 30)
    stages = [(b, rng.randint(1, max(1, 13 - b)), keep) for b, keep in zip(blocks, keeps)]
    return config_of(*stages, merge=rng.random() < 0.5, reference_depth=rng.choice([None, 12]))


def expected_lengths(config: ElipConfig, patches: int, depth: int) -> list[int] | None:
    """Non-prefix tokens in each block, counted in exact fractions; None where refused."""
    lengths, last = [patches] * depth, -1
    for stage in config.stages:
        block, lookahead = stage.block, stage.lookahead
        if config.reference_depth is not None and config.reference_depth != depth:
            block = halves_up(Fraction(block * depth, config.reference_depth))
            lookahead = halves_up(Fraction(lookahead * depth, config.reference_depth))
            lookahead = max(1, min(lookahead, depth - block))
        if block >= depth or block <= last or block + lookahead > depth:
            return None
        last = block
        if stage.keep == 1:
            continue
        is_count = isinstance(stage.keep, int)
        kept = stage.keep if is_count else math.floor(Fraction(str(stage.keep)) * patches)
        left = kept + (1 if config.merge else 0)
        if kept < 1 or left >= lengths[block]:
            return None
        lengths[block:] = [left] * (depth - block)
    return lengths


def assert_consistent(planned: Plan, patches: int, depth: int, prefix: int) -> None:
    assert len(planned.tokens) == planned.depth == depth
    full, before = prefix + patches, -1
    for stage in planned.stages:
        assert before < stage.block < depth
        assert stage.block + stage.lookahead <= depth
        assert stage.tokens_in > stage.tokens_out > prefix
        assert planned.tokens[stage.block] == stage.tokens_out
        assert stage.tokens_in == (planned.tokens[stage.block - 1] if stage.block else full)
        before = stage.block
    assert 0 <= planned.removed < 1
    assert (planned.removed > 0) == bool(planned.stages)


@pytest.mark.parametrize("seed", range(4))
def test_a_plan_is_refused_or_shrinks_at_each_stage(seed: int) -> None:
    rng = random.Random(seed)
    outcomes = {True: 0, False: 0}
    for _ in range(500):
        config, prefix = random_config(rng), rng.choice([0, 1, 5])
        patches, depth = rng.choice([4, 16, 49, 196, 577]), rng.choice([3, 6, 11, 12, 18, 24])
        lengths = expected_lengths(config, patches, depth)
        outcomes[lengths is None] += 1
        if lengths is None:
            refusal(config, num_patches=patches, depth=depth, prefix=prefix)
            continue
        planned = plan(config, num_patches=patches, depth=depth, prefix=prefix)
        assert list(planned.tokens) == [prefix + length for length in lengths]
        assert_consistent(planned, patches, depth, prefix)
    assert min(outcomes.values()) > 100


# Stages with an end.


def with_ends(*stages: tuple[Any, ...], **fields: Any) -> ElipConfig:
    return ElipConfig(stages=tuple(Stage(*stage) for stage in stages), **fields)


def test_tokens_come_back_unmerged() -> None:
    planned = plan(with_ends((2, 1, 0.5, 10), (11, 1, 0.25)), **B16)
    assert list(planned.tokens) == [197] * 2 + [99] * 8 + [197] + [51]
    assert [(s.tokens_in, s.tokens_out, s.until) for s in planned.stages] == [
        (197, 99, 10),
        (197, 51, None),
    ]
    assert planned.removed == pytest.approx((8 * 98 + 146) / (12 * 197))
    assert planned.summary() == (
        "197 tokens -> 99 at block 2 -> 197 at block 10 -> 51 at block 11; "
        "39% of 12 blocks' tokens removed"
    )
    merged = plan(with_ends((2, 1, 0.5), (11, 1, 0.25)), **B16)
    assert merged.forward_cost(768) < planned.forward_cost(768) < 1


def test_an_end_at_the_next_stage() -> None:
    planned = plan(with_ends((1, 1, 100, 4), (4, 1, 50, 8), (8, 1, 20, 9)), **B16)
    assert list(planned.tokens) == [197] + [101] * 3 + [51] * 4 + [21] + [197] * 3


def test_what_is_merged_earlier_comes_back_as_it_was() -> None:
    planned = plan(with_ends((1, 1, 0.5), (3, 1, 0.25, 6)), **B16)
    assert list(planned.tokens) == [197] + [100] * 2 + [50] * 3 + [100] * 6


def test_an_end_is_rescaled() -> None:
    config = with_ends((2, 1, 0.5, 10), reference_depth=12)
    assert [plan(config, num_patches=196, depth=d).stages[0].until for d in (6, 12, 24)] == [
        5, 10, 20,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("stages", "depth", "message"),
    [
        (((2, 1, 0.5, 12),), 12, "before one of the blocks 3 to 11, and until is 12"),
        (((2, 1, 0.5, 2),), 12, "before one of the blocks 3 to 11, and until is 2"),
        (((2, 1, 0.5, 1),), 12, "before one of the blocks 3 to 11, and until is 1"),
        (((2, 1, 0.5, -1),), 12, "before one of the blocks 3 to 11, and until is -1"),
        (
            ((2, 1, 0.5, 6), (5, 1, 0.4)),
            12,
            "stage 1 (block 5): must not come before block 6, where the tokens of the stage",
        ),
        (((5, 1, 0.5, 6),), 4, "before one of the blocks 3 to 3, and until is 2"),
        (((2, 1, 196, 6),), 12, "keep 196 of 196 patches gives 196, which must be"),
    ],
)
def test_an_end_that_cannot_hold_is_refused(stages: Any, depth: int, message: str) -> None:
    config = with_ends(*stages, reference_depth=12)
    assert message in refusal(config, depth=depth)


def test_a_stage_that_shrinks_nothing_is_left_out_and_later_ones_stay() -> None:
    config = ElipConfig((Stage(1, 1, 50), Stage(3, 1, 4)), text_weight=0.0)
    made = plan(config, num_patches=20, depth=6, skip_idle=True)
    assert [(stage.block, stage.tokens_out) for stage in made.stages] == [(3, 6)]
    assert "by_block" not in repr(made)  # which says the same twice
    assert "stage 0 (block 1): keep 50 of 20" in refusal(config, num_patches=20, depth=6)
    # Of two that would keep equally many, the later one is left out.
    twice = plan(config_of((1, 1, 10), (3, 1, 10)), num_patches=20, depth=6, skip_idle=True)
    assert twice.tokens == (21, *[12] * 5)
