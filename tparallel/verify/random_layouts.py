"""Layouts, models, schedules, micro-batches and seeds that nobody has thought of.

Hypothesis draws fields.  Those that are refused must be refused by every rank with the same text
and before any message; what the text then advises must be accepted.  Those that are accepted must
equal one process.  A counter-example is shrunk to the smallest, and is one command line.
"""

import re
from collections import Counter
from typing import Any

from ..config import replace
from ..errors import ConfigError, TParallelError
from ..pipeline_parallel.schedules import SCHEDULES
from .cases import FIXED, Case, configs
from .measure import measure
from .pool import Pool

DRAWN: dict[str, tuple] = {
    "tp": (1, 2, 1, 3, 4),
    "pp": (1, 2, 1, 3, 4),
    "dp": (1, 2, 1, 3, 4),
    "zero": (0, 1, 2, 3),
    "schedule": ("", *SCHEDULES),
    "microbatches": (1, 2, 3, 4, 6),
    "chunks": (0, 2, 3),
    "cut": ("even", "cost"),
    "sp": ("", "keep", "regather"),
    "recompute": ("none", "selective", "full"),
    "overlap": (True, False),
    "bucket_bytes": (0, 5_000),
    "reduce_each": ("microbatch", "step"),
    "shard_group": (0, 2, 3),
    "L": (1, 2, 3, 4, 8),
    "H": (1, 2, 3, 4, 6),
    "Hkv": (0, 1, 2, 3),
    "K": (4, 8),  # a norm over one or two numbers has no gradient to compare
    "F": (6, 8, 12, 24),
    "T": (1, 2, 6, 8, 12),
    "V": (2, 3, 5, 32, 37),
    "tied": (False, True),
    "norm": ("layernorm", "rmsnorm"),
    "position": ("learned", "rope"),
    "mlp": ("gelu", "swiglu"),
    "bias": ("all", "qkv", "none"),
    "global_batch": (1, 2, 4, 6, 8, 12),
    "optimizer": ("sgd", "adamw"),
    "clip": (0.0, 1e-3),
    "dropout": (0.0, 0.2),
    "seed": (0, 1, 2, 3),
}


def search(pool: Pool, cases: int, most_ranks: int) -> str:
    """Try so many cases, on rank 0; what does not hold, as text ("" if all do)."""
    try:
        from hypothesis import HealthCheck, given, seed, settings
        from hypothesis import strategies as st
    except ImportError:
        raise ConfigError(
            "random layouts are drawn by the package hypothesis: it is not installed. "
            "Install the extra test, or use verify without --random."
        ) from None
    fields = st.fixed_dictionaries({name: st.sampled_from(v) for name, v in DRAWN.items()})

    @seed(0)
    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        print_blob=False,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(fields)
    def every_case_holds(values: dict) -> None:
        wrong = problem(pool, values, most_ranks)
        assert not wrong, wrong

    try:
        every_case_holds()
    except AssertionError as e:
        return str(e)
    return ""


def problem(pool: Pool, values: dict, most_ranks: int) -> str:
    """What is wrong with the answer to these fields; "" if it is right.  Fields that are refused
    are changed as the refusal advises, until they are accepted: that case is then run."""
    values = FIXED | values | {"D": values["H"] * values["K"]}
    try:
        case = configs(values)
    except TParallelError as e:
        texts = pool.run(2, said_by_all, values)
        if {*texts} != {str(e)}:
            return f"the ranks refuse {values} with different texts: {texts}"
        try:
            case = accepted(values)
        except LookupError as why:
            return f"{why}\n    fields: {values}"
    if case.layout.ranks > most_ranks:
        return ""
    answers = pool.run(case.layout.ranks, measure, without_idle_clipping(case))
    return "\n".join(
        f"{case.command}: {quantity} differs by {a.error:.1e} at {a.where}, bound {a.bound:.0e}"
        for quantity, a in answers.items()
        if not a.holds
    )


def without_idle_clipping(case: Case) -> Case:
    """As it is, but never "clipped" where the norm is below the limit: a vocabulary of two may
    have tiny gradients."""
    from .reference import serial

    clips = serial(case.model, case.train).norm > case.train.clip
    return case if clips else replace(case, train=replace(case.train, clip=0.0))


def said_by_all(comm: Any, values: dict) -> list[str]:
    """What each rank says to fields that are refused; no message is sent before it is said."""
    try:
        configs(values)
    except TParallelError as e:
        text = str(e)
    else:
        text = "accepted"
    return comm.allgather(text)


def accepted(values: dict) -> Case:
    """Do what each refusal advises until nothing is refused; when a rule comes again, its next
    alternative.  Errors: LookupError, if it says nothing that can be done, or that never ends."""
    seen: Counter[str] = Counter()
    while seen.total() < PATIENCE:
        try:
            return configs(values)
        except TParallelError as e:
            rule = str(e).partition(":")[0]
            values = advised(values, str(e), seen[rule])
            seen[rule] += 1
    raise LookupError(f"the advice leads round in a circle: {' -> '.join(seen)}")


PATIENCE = 40  # refusals of one draw that are followed
NONE_OF = {"schedule": "", "sp": "", "chunks": 0, "zero": 0, "shard_group": 0}


def advised(values: dict, said: str, turn: int) -> dict:
    """The fields, changed as one of the alternatives after "Use" says.  Errors: LookupError."""
    alternatives = said.rpartition(" Use ")[2].split(", or ")
    way_out = alternatives[turn % len(alternatives)]
    if none := re.match(r"no (\w+)", way_out):
        return values | {none[1]: NONE_OF[none[1]]}
    found = re.match(r"(?:a )?(global batch|\w+)(?: =| of at most| of)? ([\w-]+)", way_out)
    name = found[1].replace(" ", "_") if found else ""
    if found is None or name not in values:
        raise LookupError(f"this refusal says no way out: {said}")
    return values | {name: type(values[name])(found[2])}
