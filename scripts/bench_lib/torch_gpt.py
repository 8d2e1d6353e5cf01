"""The same transformer as anybody would write it in PyTorch, whole or as a pipeline stage."""

import torch
from torch import nn
from torch.nn import functional as F

from tparallel.config import ModelConfig


class Block(nn.Module):
    def __init__(self, c: ModelConfig):
        super().__init__()
        self.heads = c.H
        self.norm1, self.norm2 = nn.LayerNorm(c.D), nn.LayerNorm(c.D)
        self.qkv, self.out = nn.Linear(c.D, 3 * c.D), nn.Linear(c.D, c.D)
        self.up, self.down = nn.Linear(c.D, c.F), nn.Linear(c.F, c.D)

    def forward(self, x):
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).chunk(3, dim=-1)
        )
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(z.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Embed(nn.Module):
    def __init__(self, c: ModelConfig):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(c.V, c.D), nn.Embedding(c.T, c.D)
        for table in (self.tokens, self.positions):  # N(0, 1), as it comes, is too wide for a tied
            nn.init.normal_(table.weight, std=0.02)  # head: denormals, a step five times as long

    def forward(self, tokens):
        return self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1]))


def layers(c: ModelConfig) -> list[nn.Module]:
    """embed, L blocks, head: ``nn.Sequential`` of all is the model, of some a stage."""
    head = nn.Sequential(nn.LayerNorm(c.D), nn.Linear(c.D, c.V, bias=False))
    embed = Embed(c)
    if c.tied:
        head[1].weight = embed.tokens.weight
    return [embed, *(Block(c) for _ in range(c.L)), head]


def mean_loss(logits, targets):
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())
