"""GELU, in GPT-2's tanh form: y = x (1 + tanh u) / 2 with u = √(2/π) (x + 0.044715 x³).

Source: Hendrycks and Gimpel 2016, section 2.
"""

from math import pi, sqrt

from ..backend import xp

C = sqrt(2 / pi)  # Python floats: a NumPy scalar would turn float32 into float64
A = 0.044715


def gelu_forward(x, b=None):
    """y = gelu(x + b), and gelu'(x + b): the slope is kept in place of x and tanh u (half the
    memory).  The bias of the product before is added here, where x is read anyway."""
    x = x if b is None else x + b
    square = x * x
    t = xp.tanh(C * x * (1 + A * square))
    slope = 0.5 * (1 + t) + 0.5 * C * x * (1 - t * t) * (1 + 3 * A * square)
    return 0.5 * x * (1 + t), slope


def gelu_backward(dy, slope):
    """dx = dy gelu'(x)."""
    return dy * slope
