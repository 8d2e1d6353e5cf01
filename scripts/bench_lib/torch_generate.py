"""Generation by the same transformer in PyTorch, as one writes it by hand: eager, a cache of keys
and values with room for the longest text, scores for the last token alone."""

import torch
from torch.nn import functional as F

from tparallel.config import ModelConfig

from .torch_gpt import Block, layers


class Generator:
    """``prefill`` and ``decode`` give the next ids of rows (B) of equal length."""

    def __init__(self, c: ModelConfig):
        torch.set_num_threads(1)
        torch.manual_seed(0)
        self.embed, *self.blocks, head = layers(c)
        self.norm, self.scores = head
        self.c = c

    @torch.inference_mode()
    def prefill(self, ids, room: int):
        c, shape = self.c, (2, len(ids), self.c.H, room, self.c.K)
        self.caches = [torch.zeros(shape) for _ in range(c.L)]
        self.length = 0
        return self._forward(ids)

    @torch.inference_mode()
    def decode(self, ids):
        return self._forward(ids[:, None])

    def _forward(self, ids):
        start, self.length = self.length, self.length + ids.shape[1]
        places = torch.arange(start, self.length)
        x = self.embed.tokens(ids) + self.embed.positions(places)
        for block, cache in zip(self.blocks, self.caches):
            x = x + self._attention(block, cache, block.norm1(x), start)
            x = x + block.down(F.gelu(block.up(block.norm2(x)), approximate="tanh"))
        return self.scores(self.norm(x[:, -1])).argmax(-1)

    def _attention(self, block: Block, cache, x, start: int):
        q, k, v = (
            part.unflatten(-1, (block.heads, -1)).transpose(1, 2)
            for part in block.qkv(x).chunk(3, dim=-1)
        )
        cache[0, :, :, start : self.length], cache[1, :, :, start : self.length] = k, v
        k, v = cache[:, :, :, : self.length]
        z = F.scaled_dot_product_attention(q, k, v, is_causal=start == 0)
        return block.out(z.transpose(1, 2).flatten(2))
