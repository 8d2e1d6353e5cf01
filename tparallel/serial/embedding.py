"""x = dropout(W_tok[token] + W_pos[position]): a row of one table and a row of another.

Shapes:  tokens (B, T) integers; x (B, T, D); W_tok (V, D); W_pos (T, D)
Source:  Radford et al. 2018, section 3.1
"""

from ..backend import xp
from ..kernels import add_rows
from .dropout import NONE


def embed_forward(tokens, p, drop=NONE):
    x = p["w_tok"][tokens]  # (B, T, D)
    x += p["w_pos"][: tokens.shape[1]]
    return drop.hidden(x, "embed.x"), (tokens, p["w_tok"].shape, p["w_pos"].shape, drop)


def embed_backward_input(dx, cache, p):
    *cache, drop = cache
    return None, (drop.hidden(dx, "embed.x"), *cache)  # tokens have no gradient


def embed_backward_weight(wcache):
    dx, tokens, tok_shape, pos_shape = wcache
    dtok = xp.zeros(tok_shape, dx.dtype)
    add_rows(dtok, tokens, dx)  # a token that occurs twice collects twice
    dpos = xp.zeros(pos_shape, dx.dtype)
    dpos[: dx.shape[1]] = dx.sum(0)
    return {"w_tok": dtok, "w_pos": dpos}


def embed_backward(dx, cache, p):
    dtokens, wcache = embed_backward_input(dx, cache, p)
    return dtokens, embed_backward_weight(wcache)
