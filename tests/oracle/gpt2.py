"""Hugging Face's GPT-2 with our parameters in it, and PyTorch's own data parallelism around it."""

import math

import numpy as np
import torch
import torch.distributed as dist
from transformers import GPT2Config, GPT2LMHeadModel

NAMES = {  # theirs -> ours, of a block
    "ln_1.weight": "norm1.g",
    "ln_1.bias": "norm1.b",
    "attn.c_proj.weight": "attn.w_out",
    "attn.c_proj.bias": "attn.b_out",
    "ln_2.weight": "norm2.g",
    "ln_2.bias": "norm2.b",
    "mlp.c_fc.weight": "mlp.w_in",
    "mlp.c_fc.bias": "mlp.b_in",
    "mlp.c_proj.weight": "mlp.w_out",
    "mlp.c_proj.bias": "mlp.b_out",
}


def theirs(params):
    """Our tree (tied) under their names and in their shapes: q, k and v side by side."""
    out = {
        "wte.weight": params["vocab"]["w_tok"],
        "wpe.weight": params["embed"]["w_pos"],
        "ln_f.weight": params["head"]["norm.g"],
        "ln_f.bias": params["head"]["norm.b"],
    }
    for layer, p in params.items():
        if not layer.startswith("block."):
            continue
        h = f"h.{layer.removeprefix('block.')}"
        D = len(p["norm1.g"])
        for name, our in NAMES.items():
            out[f"{h}.{name}"] = p[our].reshape(-1, D) if our == "attn.w_out" else p[our]
        w = np.concatenate([p["attn.w_q"].reshape(D, -1), p["attn.w_kv"].reshape(D, -1)], 1)
        b = np.concatenate([p["attn.b_q"].reshape(-1), p["attn.b_kv"].reshape(-1)])
        out |= {f"{h}.attn.c_attn.weight": w, f"{h}.attn.c_attn.bias": b}
    return out


def model_of(model, params):
    """Their model, in float64, with our parameters; no dropout."""
    config = GPT2Config(
        vocab_size=model.V,
        n_positions=model.T,
        n_embd=model.D,
        n_layer=model.L,
        n_head=model.H,
        n_inner=model.F,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    gpt2 = GPT2LMHeadModel(config).double()
    with torch.no_grad():
        named = dict(gpt2.transformer.named_parameters())
        ours = theirs(params)
        assert named.keys() == ours.keys()
        for name, value in ours.items():
            named[name].copy_(torch.from_numpy(np.ascontiguousarray(value)))
    return gpt2


def loss_of(gpt2, tokens, targets):
    """Mean cross-entropy over these rows, in nats per token."""
    logits = gpt2(torch.from_numpy(np.ascontiguousarray(tokens))).logits
    wanted = torch.from_numpy(np.ascontiguousarray(targets))
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten())


def loss_and_norm(rank, ranks, file, how, model, params, tokens, targets, answers):
    """One rank of a gloo job that asks PyTorch's ``how``; rank 0 answers."""
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=ranks)
    gpt2 = model_of(model, params)
    ask = in_stages if how == "pipelining" else by_rows
    loss, norm = ask(gpt2, how, rank, ranks, tokens, targets)
    if rank == 0:
        answers.put((float(loss), float(norm)))
    dist.barrier()
    dist.destroy_process_group()


def by_rows(gpt2, how, rank, ranks, tokens, targets):
    """Some rows of the batch on each rank, through DDP or FSDP2."""
    if how == "ddp":
        wrapped = torch.nn.parallel.DistributedDataParallel(gpt2)
    else:
        from torch.distributed.fsdp import fully_shard

        for block in gpt2.transformer.h:
            fully_shard(block)
        wrapped = fully_shard(gpt2)
    rows = slice(rank * len(tokens) // ranks, (rank + 1) * len(tokens) // ranks)
    loss = loss_of(wrapped, tokens[rows], targets[rows])
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(wrapped.parameters(), math.inf)
    mean = loss.detach() / ranks
    dist.all_reduce(mean)
    return mean, norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def in_stages(gpt2, how, rank, ranks, tokens, targets):
    """Some blocks on each rank, two micro-batches, PyTorch's 1F1B.  The table that the first and
    the last stage share is on both: what they find is added before the norm is taken."""
    from torch.distributed.pipelining import PipelineStage, Schedule1F1B

    stage = PipelineStage(Stage(gpt2, rank, ranks), rank, ranks, torch.device("cpu"))

    def loss_fn(logits, wanted):
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten())

    schedule, losses = Schedule1F1B(stage, n_microbatches=2, loss_fn=loss_fn), []
    x, y = (torch.from_numpy(np.ascontiguousarray(a)) for a in (tokens, targets))
    schedule.step(*[x] * (rank == 0), **({"target": y, "losses": losses} if rank else {}))
    table = stage.submod.table.weight
    dist.all_reduce(table.grad)
    rest = [p.grad for p in stage.submod.parameters() if p is not table]
    found = torch.stack([sum((g * g).sum() for g in rest), sum(losses, torch.tensor(0.0)) / 2])
    dist.all_reduce(found.detach_())
    return found[1], (found[0] + (table.grad**2).sum()).sqrt()


class Stage(torch.nn.Module):
    """The first or the last half of a GPT-2: its own blocks, and the table at either end."""

    def __init__(self, gpt2, rank: int, ranks: int):
        super().__init__()
        whole = gpt2.transformer
        n = len(whole.h) // ranks
        self.first, self.table = rank == 0, whole.wte
        self.positions = whole.wpe if self.first else None
        self.blocks = torch.nn.ModuleList(whole.h[rank * n : (rank + 1) * n])
        self.norm = None if self.first else whole.ln_f

    def forward(self, x):
        if self.first:
            x = self.table(x) + self.positions(torch.arange(x.shape[1]))
        for block in self.blocks:
            x = block(x)
            x = x[0] if isinstance(x, tuple) else x
        return x if self.first else self.norm(x) @ self.table.weight.T
