"""Bugs of replicas and shards over dp."""

from .bug import NUMPITRON, bug

BUGS = (
    bug(
        "same-rows",
        "every dp rank trains on the rows of the first",
        "k2-fsa/icefall/issues/1616 karpathy/llama2.c/issues/522",
        {"dp": 2},
        "gradients",
        ("train:Trainer.mine", "start = self.mesh.coords.dp * M * B", "start = 0"),
    ),
    bug(
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
    bug(
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
    bug(
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
    bug(
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
    bug(
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
)
