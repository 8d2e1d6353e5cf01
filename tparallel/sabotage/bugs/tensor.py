"""Bugs of a cut layer: who has which part, who adds what, who counts what is there twice."""

from .bug import NUMPITRON, bug

BUGS = (
    bug(
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
    bug(
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
    bug(
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
    bug(
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
    bug(
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
    bug(
        "norm-counts-replicas",
        "what every tp rank holds whole is counted tp times in the gradient norm",
        "NVIDIA-NeMo/RL/pull/3788 ROCm/TransformerEngine/pull/715 "
        "meta-pytorch/torchtune/issues/2420",
        {"tp": 4},
        "norm",
        ("tensor_parallel.split:counts_here", "range(rank)", "range(0)"),
    ),
    bug(
        "dropout-by-rank",
        "every tp rank drops the same of its own heads: half of the random numbers are used",
        "tenstorrent/tt-metal/issues/55947 pytorch/pytorch/pull/103910",
        {"tp": 2, "dropout": 0.1},
        "gradients",
        ("train:Trainer._at", "head=here.tp * self.model.H // self.layout.tp,", "head=0,"),
    ),
    bug(
        "init-by-rank",
        "the first weights depend on the layout: each tp rank draws its own",
        "pytorch/torchtitan/pull/1363 NVIDIA-NeMo/Megatron-Bridge/issues/5840",
        {"tp": 2},
        "start",
        ("train:Trainer._initial", "unit, t.seed,", "unit, t.seed + self.mesh.tp.rank,"),
    ),
)
