"""x = dropout(W_tok[token] + W_pos[position]): a row of one table and a row of another.

Without the second where positions are rotary (rope.py).

Shapes:  tokens (B, T) integers; x (B, T, D); W_tok (V, D); W_pos (T, D)
Source:  Radford et al. 2018, section 3.1
"""

from ..backend import xp
from ..kernels import rows_backward
from .context import ORIGIN


def embed_forward(tokens, p, at=ORIGIN):
    x = p["w_tok"][tokens]  # (B, T, D)
    if at.rope is None:
        x += p["w_pos"][at.positions(tokens.shape[1])]
    return at.drop.hidden(x, "embed.x"), (tokens, shapes_of(p), at.drop)


def embed_backward_input(dx, cache, p):
    *cache, drop = cache
    return None, (drop.hidden(dx, "embed.x"), *cache)  # tokens have no gradient


def embed_backward_weight(wcache):
    dx, tokens, shapes = wcache
    grads = {"w_tok": rows_backward(shapes["w_tok"], tokens, dx)}
    if "w_pos" in shapes:
        grads["w_pos"] = xp.zeros(shapes["w_pos"], dx.dtype)
        grads["w_pos"][: dx.shape[1]] = dx.sum(0)
    return grads


def embed_backward(dx, cache, p):
    dtokens, wcache = embed_backward_input(dx, cache, p)
    return dtokens, embed_backward_weight(wcache)


def shapes_of(p):
    return {name: a.shape for name, a in p.items()}
