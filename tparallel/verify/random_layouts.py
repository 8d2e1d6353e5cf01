"""Layouts, models, schedules, micro-batches and seeds that nobody has thought of.

Hypothesis draws fields.  Those that are refused must be refused by every rank with the same text
and before any message; what the text then advises must be accepted.  Those that are accepted must
equal one process.  A counter-example is shrunk to the smallest, and is one command line.
"""

import re
from typing import Any

from ..config import Layout, check, replace
from ..errors import ConfigError, LayoutError, TParallelError
from ..pipeline_parallel.schedules import SCHEDULES
from .cases import FIXED, Case, configs
from .measure import measure
from .pool import Pool

DRAWN: dict[str, tuple] = {
    "tp": (1, 2, 3, 4),
    "pp": (1, 2, 3, 4),
    "dp": (1, 2, 3, 4),
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
    "K": (1, 2, 4),
    "F": (6, 8, 12, 24),
    "T": (1, 2, 6, 8, 12),
    "V": (2, 3, 5, 32, 37),
    "tied": (False, True),
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
    """What is wrong with the answer to these fields; "" if it is right."""
    values = FIXED | values | {"D": values["H"] * values["K"]}
    try:
        case = configs(values)
    except TParallelError as e:
        return refused(pool, values, str(e))
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


def refused(pool: Pool, values: dict, said: str) -> str:
    """The same text on every rank, and a way out that works."""
    texts = pool.run(2, said_by_all, values)
    if len({*texts, said}) > 1:
        return f"the ranks refuse {values} with different texts: {texts}"
    if not re.search(r"[.?] (Use|Install) |\n", said):
        return f"this refusal says no way out: {said}"
    return followed(values, said)


def said_by_all(comm: Any, values: dict) -> list[str]:
    """What each rank says to fields that are refused; no message is sent before it is said."""
    try:
        configs(values)
    except TParallelError as e:
        text = str(e)
    else:
        text = "accepted"
    return comm.allgather(text)


def followed(values: dict, said: str) -> str:
    """Do what the text advises, again and again, until nothing is refused: "" if that ends."""
    seen = []
    for _ in range(12):
        seen.append(said)
        try:
            values = advised(values, said)
            configs(values)
        except TParallelError as e:
            said = str(e)
            if said in seen:
                break
        except LookupError:
            return f"the advice cannot be followed by a program: {said}"
        else:
            return ""
    return "the advice leads round in a circle: " + " -> ".join([*seen, said])


ADVICE = re.compile(r"(?:Use|or) (?:a |pp |an )?(.*?)(?:\.$|\. |, or |$)")
NONE_OF = {"schedule": "", "sp": "", "chunks": 0, "zero": 0, "shard_group": 0}


def advised(values: dict, said: str) -> dict:
    """The fields, changed as the sentence after "Use" says first.  Errors: LookupError."""
    way_out = said.rpartition(". Use ")[2] if ". Use " in said else said.rpartition("Use ")[2]
    first = re.match(r"(?:a )?(global batch|\w+)(?: =| of at most| of)? ([\w.-]+)", way_out)
    if not first:
        raise LookupError(way_out)
    name, value = first.groups()
    name = {"global batch": "global_batch"}.get(name, name)
    if value == "of":
        value = re.findall(r"\d+", way_out)[0]
    if name not in values and name != "no":
        raise LookupError(way_out)
    if name == "no":
        return values | {value: NONE_OF[value]}
    old = values[name]
    return values | {name: type(old)(value) if not isinstance(old, bool) else value == "True"}


__all__ = ["Layout", "LayoutError", "check", "problem", "search"]
