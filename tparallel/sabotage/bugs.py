"""The bugs: each has been found in somebody's program, and most were found late.

``edits`` put it into ours, ``layout`` is one where it bites, ``caught_by`` is the first check that
must notice.  Most of them train: look at the loss curves that ``tparallel sabotage`` prints.
"""

from typing import NamedTuple

from .. import kernels
from ..errors import ConfigError
from .patch import Edit

GITHUB = "https://github.com/"


class Bug(NamedTuple):
    name: str
    what: str
    reports: tuple[str, ...]  # below GITHUB
    layout: dict
    caught_by: str
    edits: tuple[Edit, ...]


def _bug(name: str, what: str, reports: str, layout: dict, caught_by: str, *edits: tuple) -> Bug:
    return Bug(name, what, tuple(reports.split()), layout, caught_by, tuple(map(Edit._make, edits)))


NUMPITRON = "lweitkamp/numpitron"
_RESIDUAL = "    dx += dy  # again the residuals' own gradients, here\n"

# The same bug in the version of the heads that runs where numba is installed.
FAST_SCALE = (
    [("kernels.attention:_scale", "sqrt(q.shape[-1])", "sqrt(q.shape[-1] * q.shape[-2])")]
    if kernels.name == "fast"
    else []
)

BUGS: dict[str, Bug] = {
    bug.name: bug
    for bug in (
        _bug(
            "residual-gradient",
            "backward forgets the gradient that passes beside the mlp",
            NUMPITRON,
            {},
            "slopes",
            ("serial.block:block_backward", _RESIDUAL, ""),
        ),
        _bug(
            "scale-root-d",
            "scores are divided by √D, the model's width, not by √K, the head's",
            NUMPITRON,
            {},
            "definition",
            ("serial.heads:probabilities", "1 / sqrt(K)", "1 / sqrt(K * q.shape[1] * q.shape[2])"),
            (
                "serial.heads:heads_backward",
                "1 / sqrt(q.shape[-1])",
                "1 / sqrt(q.shape[-1] * q.shape[1] * q.shape[2])",
            ),
            *FAST_SCALE,
        ),
        _bug(
            "last-id-serial",
            "the last id of the vocabulary is scored as the one before it, on one process too",
            NUMPITRON,
            {},
            "definition",
            (
                "serial.loss:every_row",
                "targets.reshape(-1)",
                "xp.minimum(targets.reshape(-1), targets.max() - 1)",
            ),
        ),
        _bug(
            "pipeline-accumulation-scale",
            "a pipeline's micro-batches each count as a whole batch: gradients M times too large",
            "pytorch/torchtitan/issues/1733 pytorch/torchtitan/issues/2972 "
            "deepspeedai/DeepSpeed/issues/7773 huggingface/picotron",
            {"pp": 2, "microbatches": 4},
            "gradients",
            (
                "pipeline_parallel.execute:Executor._dy",
                "return self.loss_backward(caches.pop())",
                "return self.loss_backward(caches.pop()) * len(self.tokens)",
            ),
        ),
        _bug(
            "norm-counts-replicas",
            "what every tp rank holds whole is counted tp times in the gradient norm",
            "NVIDIA-NeMo/RL/pull/3788 ROCm/TransformerEngine/pull/715 "
            "meta-pytorch/torchtune/issues/2420",
            {"tp": 4},
            "norm",
            ("tensor_parallel.split:counts_here", "range(rank)", "range(0)"),
        ),
        _bug(
            "norm-per-stage",
            "each pipeline stage clips by the norm of its own gradients",
            "pytorch/torchtitan/issues/596 karpathy/llm.c/pull/524",
            {"pp": 2, "microbatches": 2},
            "norm",
            (
                "zero.norm:totals",
                '        both = axis.all_reduce(both, what="loss and norm")\n',
                "        own = both[1]\n"
                '        both = axis.all_reduce(both, what="loss and norm")\n'
                "        both[1] = own if axis is mesh.pp else both[1]\n",
            ),
        ),
        _bug(
            "dp-forgets-a-block",
            "the gradients of one block are not summed over dp: its replicas drift apart",
            NUMPITRON,
            {"dp": 2},
            "replicas",
            (
                "zero.store:Store._start_sum",
                "elif self.shard.size > 1:",
                'elif bucket != "block.1" and self.shard.size > 1:',
            ),
        ),
        _bug(
            "average-twice",
            "gradients are averaged over dp, though the loss divides by all tokens already",
            "pytorch/torchtitan/pull/2206 NVIDIA/Megatron-LM/issues/936",
            {"dp": 4},
            "gradients",
            (
                "zero.store:Store._start_sum",
                "self.shard.start_all_reduce(local,",
                "self.shard.start_all_reduce(local / self.shard.size,",
            ),
        ),
        _bug(
            "same-rows",
            "every dp rank trains on the rows of the first",
            "k2-fsa/icefall/issues/1616 karpathy/llama2.c/issues/522",
            {"dp": 2},
            "gradients",
            ("train:Trainer.mine", "start = self.mesh.coords.dp * M * B", "start = 0"),
        ),
        _bug(
            "bias-times-tp",
            "the bias of a row-split layer is added before the sum: tp times",
            "huggingface/text-generation-inference/issues/1036 awslabs/slapo/issues/10 "
            "pytorch/torchtitan/pull/4245",
            {"tp": 2},
            "gradients",
            (
                "tensor_parallel.mlp:mlp_forward",
                'biased(tp.leave(y, what="mlp.y"), p.get("b_out"))',
                'tp.leave(biased(y, p.get("b_out")), what="mlp.y")',
            ),
        ),
        _bug(
            "qkv-slice",
            "the fused keys and values are cut as one row of numbers, not each by head",
            "deepspeedai/DeepSpeed/pull/3844",
            {"tp": 2},
            "gradients",
            (
                "tensor_parallel.split:shard",
                "    return {",
                '    if "attn.w_kv" in p:\n'
                '        D, two, H, K = p["attn.w_kv"].shape\n'
                '        a = p["attn.w_kv"].reshape(D, n, two, H // n, K).swapaxes(1, 2)\n'
                '        p = p | {"attn.w_kv": a.reshape(D, two, H, K)}\n'
                "    return {",
            ),
        ),
        _bug(
            "missing-f",
            "backward does not sum the gradient of what enters a column-split layer",
            "NVIDIA/Megatron-LM/issues/19 NVIDIA/Megatron-LM/issues/559",
            {"tp": 2},
            "gradients",
            (
                "tensor_parallel.mlp:mlp_backward_input",
                'dx = tp.enter_backward(dx, what="mlp.dx")',
                'dx = tp.again(dx, what="mlp.dx")',
            ),
        ),
        _bug(
            "norm-shares",
            "under sequence parallelism each rank keeps its own tokens' share of a norm's gradient",
            "NVIDIA/Megatron-LM/issues/443 NVIDIA/Megatron-LM/issues/1446 "
            "EleutherAI/gpt-neox/pull/1257",
            {"tp": 2, "sp": "keep"},
            "gradients",
            (
                "tensor_parallel.region:SequenceParallel.partial",
                'return "norm" in name',
                "return False",
            ),
        ),
        _bug(
            "last-vocabulary-id",
            "the last id of the vocabulary belongs to no rank's part of the table",
            NUMPITRON + " NVIDIA/Megatron-LM/issues/1754",
            {"tp": 2},
            "loss",
            (
                "tensor_parallel.embedding:local_tokens",
                "(tokens < rows.stop)",
                "(tokens < min(rows.stop, V - 1))",
            ),
        ),
        _bug(
            "tied-table",
            "the two ends of the pipeline do not add their gradients of the shared table",
            "NVIDIA/Megatron-LM/issues/299 NVIDIA/Megatron-LM/issues/656 "
            "NVIDIA/Megatron-LM/issues/844",
            {"pp": 2, "microbatches": 2, "tied": True},
            "replicas",
            ("zero.store:Store.reduce", 'if b == "vocab" and', 'if b == "none" and'),
        ),
        _bug(
            "zero2-last-reduce",
            "under ZeRO-2 the last micro-batch is not summed: every rank adds its own",
            "liangyuwang/Tiny-DeepSpeed/issues/2 huggingface/accelerate/issues/3877 "
            "deepspeedai/DeepSpeed/issues/2252",
            {"dp": 2, "zero": 2, "microbatches": 2},
            "gradients",
            (
                "zero.store:Store._start_sum",
                "lambda mine: self._take(bucket, mine)",
                "lambda mine: self._take(bucket, self.partitions[bucket].own(\n"
                "                local, self.shard.rank) if bucket in self.summed else mine)",
            ),
        ),
        _bug(
            "reordered-moments",
            "from the third step on, moments lie in another order than their gradients",
            "huggingface/nanotron/pull/37",
            {"dp": 2, "zero": 1},
            "optimizer state",
            (
                "zero.optimizer:Optimizer.update",
                "{k: held[bucket][s] for k, held in self.state.items()}",
                "{k: held[bucket][:: -1 if step > 1 else 1][s] for k, held in self.state.items()}",
            ),
        ),
        _bug(
            "stale-weights",
            "after an update, one layer's new weights are not gathered: others keep the old ones",
            "deepspeedai/DeepSpeed/issues/966 deepspeedai/DeepSpeed/issues/1488",
            {"dp": 2, "zero": 1},
            "replicas",
            (
                "zero.store:Store.update",
                'if self.sharded("optimizer") and not self.sharded("params"):',
                'if b != "block.1" and self.sharded("optimizer"):',
            ),
        ),
        _bug(
            "microbatch-order",
            "the first stage takes stored activations last in, first out, its gradients in order",
            "pytorch/pytorch/issues/139404",
            {"pp": 2, "microbatches": 4, "schedule": "gpipe"},
            "gradients",
            (
                "pipeline_parallel.execute:Executor._backward",
                "caches = self.caches.pop((chunk, m))",
                "caches = self.caches.pop((chunk, m) if chunk else max(self.caches))",
            ),
        ),
        _bug(
            "dropout-by-rank",
            "every tp rank drops the same of its own heads: half of the random numbers are used",
            "tenstorrent/tt-metal/issues/55947 pytorch/pytorch/pull/103910",
            {"tp": 2, "dropout": 0.1},
            "gradients",
            ("train:Trainer._at", "head=here.tp * self.model.H // self.layout.tp,", "head=0,"),
        ),
        _bug(
            "recompute-drops-anew",
            "recomputation in backward draws other dropout than forward did",
            "allenai/OLMo-core/pull/828",
            {"dropout": 0.1, "recompute": "full"},
            "gradients",
            (
                "serial.recompute:full",
                "return f.forward(x, p, at=at)[1]",
                "return f.forward(x, p, at=at.of(1))[1]",
            ),
        ),
        _bug(
            "init-by-rank",
            "the first weights depend on the layout: each tp rank draws its own",
            "pytorch/torchtitan/pull/1363 NVIDIA-NeMo/Megatron-Bridge/issues/5840",
            {"tp": 2},
            "start",
            ("train:Trainer._initial", "unit, t.seed,", "unit, t.seed + self.mesh.tp.rank,"),
        ),
    )
}


def chosen(names: list[str]) -> list[Bug]:
    """The bugs of these names, or all.  Errors: ConfigError for a name that is not one."""
    for name in names:
        if name not in BUGS:
            raise ConfigError(f"no such bug: {name}. Use one of {', '.join(BUGS)}.")
    return [BUGS[name] for name in names or BUGS]
