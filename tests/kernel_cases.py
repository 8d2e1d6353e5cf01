"""What every kernel is asked: inputs that any backend can take, answers on the host."""

import numpy as np

from tparallel.config import ModelConfig, TrainConfig
from tparallel.serial.context import context
from tparallel.zero.precision import storage_dtype


def answers(k, dtype: str, put, compute: str | None = None) -> dict[str, np.ndarray]:
    """{what: numbers} of the kernels ``k``; inputs are drawn in ``dtype`` and, if asked, computed
    with in another.  ``put`` makes an array of the backend."""
    found: dict = {}
    kind = storage_dtype(dtype)

    def draw(*shape, seed=0, scale=1.0, wide=False):
        x = (scale * np.random.default_rng([seed, *shape]).normal(size=shape)).astype(kind)
        return put(x.astype(compute or ("float32" if wide and x.itemsize < 4 else kind)))

    def keep(**results):
        for name, x in results.items():
            found[name] = x.get() if hasattr(x, "get") else np.asarray(x)

    for T in (7, 500):
        for name, p in _norms(draw, f"of {T}").items():
            y, cache = k.norm_forward(draw(2, T, 40, scale=3), p, 1e-5)
            dx, wcache = k.norm_backward_input(draw(2, T, 40, seed=1), cache, p)
            grads = {f"{name} d{n}": g for n, g in k.norm_backward_weight(wcache).items()}
            keep(**{f"{name} y": y, f"{name} dx": dx, **grads})
    for shape in ((2, 7, 30), (2, 7, 2, 30)):
        for b in (None, draw(*shape[2:], seed=1)):
            a, slope = k.activation_forward(draw(*shape, scale=4), b)
            name = f"activation {shape} {'without b' if b is None else 'with b'}"
            keep(**{f"{name} a": a, f"{name} slope": slope})
    for T, H, Hkv in ((2, 2, 2), (16, 4, 2), (37, 3, 3), (40, 4, 1), (128, 4, 2)):
        q, kv = draw(2, T, H, 8), draw(2, T, 2, Hkv, 8, seed=1)
        z, cache = k.heads_forward(q, kv)
        dq, dkv = k.heads_backward(draw(2, T, H, 8, seed=2), cache)
        name = f"attention T {T} H {H} Hkv {Hkv}"
        keep(**{f"{name} z": z, f"{name} dq": dq, f"{name} dkv": dkv})
    model = ModelConfig(T=16, H=4, Hkv=2, K=6, position="rope")
    at = context(model, "float32" if kind.itemsize < 4 and not compute else compute or dtype)
    at = at._replace(start=5)
    q, kv = k.rope_forward(draw(2, 9, 4, 6), draw(2, 9, 2, 2, 6), at)
    dq, dkv = k.rope_backward(draw(2, 9, 4, 6), draw(2, 9, 2, 2, 6), at)
    keep(**{"rope q": q, "rope kv": kv, "rope dq": dq, "rope dkv": dkv})
    for V in (23, 1100):
        logits, targets = draw(2, 7, V, scale=5), np.random.default_rng(3).integers(0, V, (2, 7))
        loss, cache = k.cross_entropy_forward(logits, put(targets), 14)
        dlogits = k.cross_entropy_backward(cache)
        keep(**{f"loss of {V}": loss, f"dlogits of {V}": dlogits})
    numbers = put(np.random.default_rng(4).integers(0, 11, (2, 150)))
    keep(table=k.rows_backward((11, 6), numbers, draw(2, 150, 6, seed=1)))
    w, m, v = (draw(60, seed=n, wide=True) ** (1 + n // 2) for n in range(3))
    for step in range(3):
        k.adamw_update(w, draw(60, seed=3 + step), m, v, step, 0.1, 0.01, TrainConfig(), 0.5)
    keep(w=w, m=m, v=v)
    return found


def _norms(draw, of: str) -> dict[str, dict]:
    g, b = draw(40, seed=2), draw(40, seed=3)
    return {f"layer norm {of}": {"g": g, "b": b}, f"RMS norm {of}": {"g": g}}
