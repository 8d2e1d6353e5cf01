"""The transformer of ``tparallel.serial`` once more, in plain PyTorch.

It shares the names and values of the weights with the hand-written one and nothing else: layers,
loss, derivatives, optimizers, schedules and clipping are PyTorch's own.
"""

import torch
from torch import nn
from torch.nn import functional as F

from tparallel.config import ModelConfig, TrainConfig


class Attention(nn.Module):
    def __init__(self, c: ModelConfig):
        super().__init__()
        self.head = c.K
        self.q = nn.Linear(c.D, c.D)
        self.kv = nn.Linear(c.D, 2 * c.Hkv * c.K)
        self.out = nn.Linear(c.D, c.D)

    def forward(self, x):
        q, k, v = (
            part.unflatten(-1, (-1, self.head)).transpose(1, 2)
            for part in (self.q(x), *self.kv(x).chunk(2, dim=-1))
        )
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.out(z.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, c: ModelConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(c.D)
        self.attn = Attention(c)
        self.norm2 = nn.LayerNorm(c.D)
        self.mlp = nn.Sequential(
            nn.Linear(c.D, c.F), nn.GELU(approximate="tanh"), nn.Linear(c.F, c.D)
        )

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Twin(nn.Module):
    def __init__(self, c: ModelConfig):
        super().__init__()
        self.tok = nn.Embedding(c.V, c.D)
        self.pos = nn.Embedding(c.T, c.D)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.L))
        self.norm = nn.LayerNorm(c.D)
        self.head = nn.Linear(c.D, c.V, bias=False)
        if c.tied:
            self.head.weight = self.tok.weight

    def forward(self, tokens):
        x = self.tok(tokens) + self.pos(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def mean_loss(twin: Twin, tokens, targets):
    return F.cross_entropy(twin(tokens).flatten(0, 1), targets.flatten())


def accumulate(twin: Twin, tokens, targets, microbatches: int) -> float:
    """The mean loss of the batch; its gradients are left in ``.grad``."""
    twin.zero_grad()
    total = 0.0
    for x, y in zip(tokens.chunk(microbatches), targets.chunk(microbatches)):
        loss = mean_loss(twin, x, y) / microbatches
        loss.backward()
        total += loss.item()
    return total


def train(twin: Twin, tokens, targets, c: TrainConfig, microbatches: int) -> dict[str, list[float]]:
    """Trains in place on tokens, targets (steps, G, T); losses, norms and rates of each step."""
    params = list(twin.parameters())
    groups = [
        {"params": [p for p in params if p.dim() >= 2], "weight_decay": c.weight_decay},
        {"params": [p for p in params if p.dim() < 2], "weight_decay": 0.0},
    ]
    if c.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, lr=c.lr)
    else:
        optimizer = torch.optim.AdamW(groups, lr=c.lr, betas=(c.beta1, c.beta2), eps=c.eps)
    schedule = warmup_then_cosine(optimizer, c)
    log: dict[str, list[float]] = {"loss": [], "norm": [], "lr": []}
    for x, y in zip(tokens, targets):
        log["loss"].append(accumulate(twin, x, y, microbatches))
        norm = nn.utils.get_total_norm([p.grad for p in params])
        # PyTorch divides by norm + 1e-6, the definition by norm: 1e-6 of difference, undone here.
        nn.utils.clip_grads_with_norm_(params, c.clip, norm - 1e-6)
        log["norm"].append(norm.item())
        log["lr"].append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return log


def warmup_then_cosine(optimizer, c: TrainConfig):
    schedule = torch.optim.lr_scheduler
    return schedule.SequentialLR(
        optimizer,
        [
            schedule.LinearLR(optimizer, start_factor=1 / c.warmup, total_iters=c.warmup - 1),
            schedule.CosineAnnealingLR(optimizer, c.steps - c.warmup, eta_min=c.min_lr * c.lr),
        ],
        milestones=[c.warmup],
    )
