"""Megatron's cut of a block in PyTorch: column- and row-split linear layers between f and g."""

import torch
from torch import distributed, nn
from torch.nn import functional as F

from tparallel.config import ModelConfig

from .torch_gpt import Embed


class CopyIn(torch.autograd.Function):
    """f: the identity forward, a sum backward."""

    @staticmethod
    def forward(ctx, x):
        return x

    @staticmethod
    def backward(ctx, dx):
        dx = dx.contiguous()
        distributed.all_reduce(dx)
        return dx


class SumOut(torch.autograd.Function):
    """g: a sum forward, the identity backward."""

    @staticmethod
    def forward(ctx, y):
        distributed.all_reduce(y)
        return y

    @staticmethod
    def backward(ctx, dy):
        return dy


class Block(nn.Module):
    def __init__(self, c: ModelConfig, n: int):
        super().__init__()
        self.heads = c.H // n
        self.norm1, self.norm2 = nn.LayerNorm(c.D), nn.LayerNorm(c.D)
        self.qkv = nn.Linear(c.D, 3 * c.D // n)
        self.out, self.out_bias = nn.Linear(c.D // n, c.D, bias=False), bias(c.D)
        self.up = nn.Linear(c.D, c.F // n)
        self.down, self.down_bias = nn.Linear(c.F // n, c.D, bias=False), bias(c.D)

    def forward(self, x):
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(CopyIn.apply(self.norm1(x))).chunk(3, dim=-1)
        )
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + SumOut.apply(self.out(z.transpose(1, 2).flatten(2))) + self.out_bias
        h = F.gelu(self.up(CopyIn.apply(self.norm2(x))), approximate="tanh")
        return x + SumOut.apply(self.down(h)) + self.down_bias


def bias(size: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(size))


def layers(c: ModelConfig, n: int) -> list[nn.Module]:
    """embed, L blocks cut over n ranks, head."""
    head = nn.Sequential(nn.LayerNorm(c.D), nn.Linear(c.D, c.V, bias=False))
    return [Embed(c), *(Block(c, n) for _ in range(c.L)), head]
