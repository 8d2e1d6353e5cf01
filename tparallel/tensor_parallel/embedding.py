"""x = dropout(W_tok[token] + W_pos[position]), with the rows of W_tok (V) cut over tp.

A rank looks up the tokens whose rows it holds and puts zeros for the others; the sum over tp
finds each row exactly once.  V need not be divisible by tp.  No W_pos where positions are rotary.

Shapes:        tokens (B, T) integers; x (B, T, D), or (B, T/tp, D) under sequence parallelism;
               W_tok (V/tp, D); W_pos (T, D)
Communicates:  forward the sum of x: B T D elements; backward nothing, or an all_gather of dx
Compare with:  serial/embedding.py
Source:        Shoeybi et al. 2019, section 3
"""

from ..backend import xp
from ..kernels import rows_backward
from ..serial.context import ORIGIN
from ..serial.embedding import shapes_of
from .split import part


def embed_forward(tokens, p, tp, V, at=ORIGIN):
    local, mine = local_tokens(tokens, tp, V)
    x = p["w_tok"][local] * mine[..., None]  # (B, T, D) partial over tp
    x = tp.leave(x, what="embed.x")  # (B, T, D)
    if at.rope is None:
        x += p["w_pos"][at.positions(tokens.shape[1])[..., tp.tokens(tokens.shape[1])]]
    return at.drop.hidden(x, "embed.x"), (tokens, shapes_of(p), at.drop)


def embed_backward_input(dx, cache, p, tp, V):
    *cache, drop = cache
    dx = tp.leave_backward(drop.hidden(dx, "embed.x"), what="embed.dx")  # (B, T, D)
    return None, (dx, *cache)  # tokens have no gradient


def embed_backward_weight(wcache, tp, V):
    dx, tokens, shapes = wcache
    local, mine = local_tokens(tokens, tp, V)
    grads = {"w_tok": rows_backward(shapes["w_tok"], local, dx * mine[..., None])}
    if "w_pos" in shapes:
        grads["w_pos"] = xp.zeros(shapes["w_pos"], dx.dtype)
        grads["w_pos"][: dx.shape[1]] = dx.sum(0)
    return grads


def embed_backward(dx, cache, p, tp, V):
    dtokens, wcache = embed_backward_input(dx, cache, p, tp, V)
    return dtokens, embed_backward_weight(wcache, tp, V)


def local_tokens(tokens, tp, V):
    """Row numbers within this rank's part of the table (0 where it is not here), and a mask."""
    rows = part(V, tp.rank, tp.size)
    mine = (rows.start <= tokens) & (tokens < rows.stop)
    return xp.where(mine, tokens - rows.start, 0), mine
