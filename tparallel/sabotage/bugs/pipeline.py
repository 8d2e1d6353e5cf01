"""Bugs of stages and micro-batches."""

from .bug import bug

BUGS = (
    bug(
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
    bug(
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
    bug(
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
    bug(
        "tied-table",
        "the two ends of the pipeline do not add their gradients of the shared table",
        "NVIDIA/Megatron-LM/issues/299 NVIDIA/Megatron-LM/issues/656 NVIDIA/Megatron-LM/issues/844",
        {"pp": 2, "microbatches": 2, "tied": True},
        "replicas",
        ("zero.store:Store.reduce", 'if b == "vocab" and', 'if b == "none" and'),
    ),
)
