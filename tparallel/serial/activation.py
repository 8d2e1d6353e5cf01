"""Activations, forward with their slope: what backward multiplies by is kept, and not the input.

GELU, in GPT-2's tanh form: a = h (1 + tanh u) / 2 with u = √(2/π) (h + 0.044715 h³).
SwiGLU: a = silu(gate) · up with silu(g) = g σ(g), of gate and up that lie side by side in h.

Shapes:  a (B, T, F); GELU's h and slope (B, T, F), SwiGLU's (B, T, 2, F)
Source:  Hendrycks and Gimpel 2016, section 2; Shazeer 2020, section 2
"""

from math import pi, sqrt

from ..backend import xp

C = sqrt(2 / pi)  # Python floats: a NumPy scalar would turn float32 into float64
A = 0.044715


def activation_forward(h, b=None):
    """a and its slope: SwiGLU's where h has a gate, else GELU's.  The bias of the product before
    is added here, where h is read anyway."""
    h = h if b is None else h + b
    return swiglu_forward(h) if h.ndim == 4 else gelu_forward(h)


def activation_backward(da, slope):
    """dh = da slope: both halves of a gated h get the same da."""
    return (da[:, :, None] if slope.ndim == 4 else da) * slope


def gelu_forward(h):
    """a = gelu(h), and gelu'(h)."""
    square = h * h
    t = xp.tanh(C * h * (1 + A * square))
    slope = 0.5 * (1 + t) + 0.5 * C * h * (1 - t * t) * (1 + 3 * A * square)
    return 0.5 * h * (1 + t), slope


def swiglu_forward(h):
    """a = silu(gate) up, and its slopes: up silu'(gate), and silu(gate)."""
    gate, up = h[:, :, 0], h[:, :, 1]  # (B, T, F) each
    s = 0.5 * (1 + xp.tanh(0.5 * gate))  # σ(gate), without an e^x that overflows
    silu = gate * s
    slope = xp.stack([up * (s + silu * (1 - s)), silu], 2)  # (B, T, 2, F)
    return silu * up, slope
