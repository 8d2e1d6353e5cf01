"""The result as plain values, for compare.json; everything shown later is made from it alone."""

import json
import os
import platform
from math import isfinite, nan
from pathlib import Path

from mpi4py import MPI

from .. import backend, kernels, predict
from ..comm.transport import cores
from ..config import as_dict
from ..report.log import versions
from ..serial.parameters import count
from .equality import relative_error
from .measure import times
from .run import Outcome, Task


def report(task: Task, ranks: int, about: dict, curve: list[float], outcomes: dict) -> dict:
    """version, model, run, rows; ``curve`` is the loss of serial/train.py; ``about`` goes into
    ``run``: the corpus (``data``) and how busy the machine was (``load_at_start``)."""
    return {
        "version": 1,
        "model": {**as_dict(task.model), "parameters": count(task.model)},
        "run": {**_run(task, ranks), **about},
        "serial_loss": curve,
        "rows": [_row(task, name, outcome, curve) for name, outcome in outcomes.items()],
    }


def _run(task: Task, ranks: int) -> dict:
    train, (vendor, version) = task.train, MPI.get_vendor()
    return {
        "ranks": ranks,
        "steps": train.steps,
        "dtype": train.dtype,
        "backend": backend.name,
        "device": backend.device(),
        "kernels": kernels.name,
        "mpi": f"{vendor} {'.'.join(map(str, version))}",
        "seed": train.seed,
        "global_batch": train.global_batch,
        "microbatches": max(layout.microbatches for layout in task.layouts.values()),
        "train": as_dict(train),
        "cores": cores(),
        "machine": f"{platform.system()} {platform.machine()}",
        "versions": versions(),
    }


def _row(task: Task, name: str, outcome: Outcome, curve: list[float]) -> dict:
    layout, proof, ranks = task.layouts[name], outcome.proof, outcome.ranks
    losses = ranks[0].losses
    timed = times(ranks, layout, task.train.global_batch * task.model.T)
    return {
        "name": name,
        "layout": as_dict(layout),
        "loss": losses,
        "loss_error": proof.loss,
        "gradient_error": proof.gradient,
        "worst_gradient": proof.worst,
        "norm_error": proof.norm,
        "loss_curve_error": max(relative_error(a, b) for a, b in zip(losses, curve)),
        "held_bytes": {kind: [own.held[kind] for own in ranks] for kind in ranks[0].held},
        "held_bytes_predicted": predict.held(task.model, task.train, layout),
        "pool_peak_bytes": [own.pool_peak for own in ranks],
        "wire_bytes": {axis: [own.wire[axis] for own in ranks] for axis in ranks[0].wire},
        "wire_bytes_predicted": predict.wire(task.model, task.train, layout),
        "step_seconds": timed["step_seconds"],
        "tokens_per_second": timed["tokens_per_second"],
        "wait_fraction": timed["wait_fraction"],
        "bubble_predicted": predict.bubble(layout),
        "bubble_measured": timed["bubble_measured"],
        "crowded": outcome.crowded,
        "seconds": outcome.seconds,
    }


def load() -> float:
    """Processes that want a core, over the last minute (the system's load average), or NaN."""
    try:
        return os.getloadavg()[0]
    except OSError:
        return nan


def write(result: dict, folder: Path) -> Path:
    """compare.json, whole or not at all; what is not finite becomes null.  Errors: OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    path, new = folder / "compare.json", folder / "compare.json.new"
    new.write_text(dumps(result) + "\n")
    os.replace(new, path)
    return path


def dumps(result: dict) -> str:
    """As JSON that every reader takes: it has no word for infinity."""
    return json.dumps(_finite(result), indent=1, allow_nan=False)


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not isfinite(value) else value
