"""The parallel proofs can fail: each defect, several of them known from bug reports, is put into a
copy of the code, and turns a named test red."""

import pytest
from mutate import Defect, assert_places, assert_turns_red, copy_of_project

LAYERS = "test_tensor_parallel.py::test_each_cut_layer_equals_its_serial_twin"
BITS = "test_pipeline_parallel.py::test_a_pipeline_has_serials_loss_and_gradients_to_the_last_bit"
NORM = "test_zero.py::test_the_norm_before_clipping_counts_every_number_once"
ONE = "test_zero.py::test_with_one_micro_batch_every_stage_trains_to_the_same_bits"
FOUR = "test_zero.py::test_with_four_micro_batches_the_stages_agree_in_pairs_and_beyond_to_rounding"

DEFECTS = [
    Defect(
        "the residual gradient of a cut block is dropped",
        "tensor_parallel/block.py",
        "    dx += dy  # the residual",
        "    # the residual",
        LAYERS,
    ),
    Defect(
        "the last id of the vocabulary is scored as the one before it",
        "tensor_parallel/loss.py",
        "[every_row(local)].reshape(top.shape)",
        "[every_row(local.clip(max=logits.shape[-1] - 2))].reshape(top.shape)",
        "test_tensor_parallel.py::test_the_cut_cross_entropy_equals_the_serial_one",
    ),
    Defect(
        "the row-split bias is added on every tp rank, before the sum",
        "tensor_parallel/mlp.py",
        'biased(tp.leave(y, what="mlp.y"), p.get("b_out"))',
        'tp.leave(biased(y, p.get("b_out")), what="mlp.y")',
        "test_tensor_parallel.py::test_a_row_split_bias_is_added_once",
    ),
    Defect(
        "the gradients of one block are not summed over dp",
        "zero/store.py",
        "        elif self.shard.size > 1:\n",
        '        elif self.shard.size > 1 and bucket != "block.1":\n',
        "test_products.py::test_every_layout_of_four_ranks_trains_as_one_process_does",
    ),
    Defect(
        "a pipeline takes the mean of each micro-batch",
        "pipeline_parallel/execute.py",
        "self.loss_forward(y, targets, self.count)",
        "self.loss_forward(y, targets, targets.size)",
        BITS,
    ),
    Defect(
        "the norm counts what tp ranks hold alike tp times",
        "tensor_parallel/split.py",
        "for r in range(rank))",
        "for r in range(0))",
        NORM,
    ),
    Defect(
        "the two gradients of a tied table are not summed",
        "zero/store.py",
        'self.mesh.ends if b == "vocab"',
        'self.mesh.ends if b == "nothing"',
        "test_pipeline_parallel.py::"
        "test_a_tied_table_gets_both_of_its_gradients_and_stays_the_same_at_both_ends",
    ),
    Defect(
        "a tp rank looks up the row below its token's",
        "tensor_parallel/embedding.py",
        "xp.where(mine, tokens - rows.start, 0)",
        "xp.where(mine, (tokens - rows.start - 1) % (rows.stop - rows.start), 0)",
        LAYERS,
    ),
    Defect(
        "ZeRO-1 and 2 do not gather what was updated",
        "zero/store.py",
        'if self.sharded("optimizer") and not self.sharded("params"):\n                what',
        "if False:\n                what",
        ONE,
    ),
]
MORE = [
    Defect(
        "each pipeline stage clips by its own norm",
        "zero/norm.py",
        "(mesh.tp, mesh.pp, mesh.dp)",
        "(mesh.tp, mesh.dp)",
        NORM,
    ),
    Defect(
        "the shard of a micro-batch replaces the one before it",
        "zero/store.py",
        "        if bucket in self.summed:\n",
        "        if False:\n",
        FOUR,
    ),
    Defect(
        "a rank holds every n-th head, not a range of them",
        "tensor_parallel/split.py",
        "part(shape[SPLIT_DIM[name]], rank, n)",
        "slice(rank, None, n)",
        "test_tensor_split.py::test_a_rank_holds_the_same_heads_of_q_k_and_v_and_of_the_output",
    ),
    Defect(
        "the attention's input gradient stays partial",
        "tensor_parallel/attention.py",
        'tp.enter_backward(dx, what="attn.dx")',
        'tp.again(dx, what="attn.dx")',
        LAYERS,
    ),
    Defect(
        "1F1B runs one forward too far ahead",
        "pipeline_parallel/schedules.py",
        "ahead = min(S - 1 - stage, M)",
        "ahead = min(S - stage, M)",
        "test_schedules.py::test_what_each_stage_holds_has_a_closed_form",
    ),
    Defect(
        "biases and norms decay too",
        "zero/optimizer.py",
        "return decayed(name) == decays",
        "return decays",
        "test_products.py::test_sizes_that_are_not_powers_of_two_train_as_one_process_does",
    ),
    Defect(
        "a sum is made from the last rank down",
        "comm/sums.py",
        "total, *others = parts\n",
        "total, *others = parts[::-1]\n",
        "test_comm_verbs.py::"
        "test_all_reduce_is_the_sum_in_rank_order_to_the_last_bit_on_every_rank",
    ),
]


CASES = [*DEFECTS, *(pytest.param(defect, marks=pytest.mark.slow) for defect in MORE)]


@pytest.mark.parametrize("defect", CASES, ids=lambda d: d.what)
def test_a_defect_turns_the_named_test_red(tmp_path, defect):
    """Without it the same test is green: it runs beside this one."""
    assert_turns_red(copy_of_project(tmp_path), defect)


def test_every_defect_has_its_line_and_its_test():
    """Code that moves away under a defect is noticed at once, also for those that run seldom."""
    assert_places(DEFECTS + MORE)
