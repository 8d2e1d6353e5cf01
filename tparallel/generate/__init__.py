"""Text from a model, in any layout: prompts in, new tokens out, the same in every layout.

Order: ``cache`` (keys and values of the tokens so far), ``sample`` (which token comes next),
``rows`` (prompts of unequal length as a batch), ``generator`` (prefill and decode on the mesh),
``text`` (ids as text, while they come).
"""

from .generator import Generated, Generator
from .sample import Rule

__all__ = ["Generated", "Generator", "Rule"]
