"""A run that goes on: which checkpoint it begins with, and with which settings."""

from dataclasses import fields
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..config import Layout, ModelConfig, TrainConfig, as_dict, replace
from ..data import Corpus
from ..errors import CheckpointError, ConfigError
from . import folder, manifest
from .folder import Checkpoint

FIXED = ("optimizer", "dtype", "seed")  # of the training: with others it would be another run


def chosen(resume: str | None, save: str | None, comm: Any) -> tuple[Checkpoint | None, list[str]]:
    """What ``--resume`` means, and what there is to say about it, the same on every rank.

    ``resume`` is None (no), "" (the newest in the folder ``save``; the beginning where there is
    none), a checkpoint, or a folder of checkpoints.  Every byte of the chosen one is checked.
    Errors: ConfigError, CheckpointError.
    """
    if resume is None:
        return None, []
    if not (resume or save):
        raise ConfigError(
            "--resume looks into the folder of --save: there is none. Use --save DIR."
        )
    path = Path(resume or save or "")
    if comm.bcast(folder.step_of(path) >= 0 or (path / manifest.NAME).exists()):
        return folder.opened(path, comm), []
    found, refused = folder.newest(path, comm)
    if not found and (refused or resume):
        whole = "; ".join(refused) or f"{path} has none"
        raise CheckpointError(
            f"--resume needs a whole checkpoint: {whole}. Use another folder, or start anew "
            "without --resume."
        )
    said = [f"refused {why}" for why in refused]
    return found, said if found else [f"resume  {path} has no checkpoint: from the beginning"]


def settings(
    checkpoint: Checkpoint, model: dict, train: dict
) -> tuple[ModelConfig, TrainConfig, list[str]]:
    """The checkpoint's settings, with those that were asked for (``model``, ``train``: the fields
    that were given) in their place; and what there is to say about it.

    Errors: CheckpointError where the model, or what is FIXED, is asked to be another.
    """
    saved_model = _known(ModelConfig, checkpoint, "model")
    saved_train = _known(TrainConfig, checkpoint, "train")
    wanted = replace(saved_model, **model), replace(saved_train, **train)
    changes = _changes(saved_model, wanted[0]), _changes(saved_train, wanted[1])
    fixed = changes[0] | {name: change for name, change in changes[1].items() if name in FIXED}
    if fixed:
        different = ", ".join(f"{n} = {old} there, {new} here" for n, (old, new) in fixed.items())
        raise CheckpointError(
            f"a run goes on with the model, {', '.join(FIXED)} that it had: {different} "
            f"({checkpoint.path}). Leave {_flags(fixed)} away, or start anew without --resume."
        )
    layout = _known(Layout, checkpoint, "layout")
    said = [f"resume  {checkpoint.path}: {checkpoint.step} steps done, saved by {layout.name}"]
    said += [f"changed {name}: {old} -> {new}" for name, (old, new) in changes[1].items()]
    if checkpoint.step == wanted[1].steps:
        said += ["done    no step is left: --steps with more trains on"]
    if checkpoint.step > wanted[1].steps:
        raise CheckpointError(
            f"a run that goes on must not have had more steps already: {checkpoint.step} are done "
            f"in {checkpoint.path}, steps = {wanted[1].steps}. Use --steps with more."
        )
    return *wanted, said


def text(corpus: Corpus) -> dict:
    """What a checkpoint keeps of the text: batches are numbered in its tokens."""
    tokens = {"tokens": len(corpus.tokens), "tokens_sha256": sha256(corpus.tokens.data).hexdigest()}
    return {**corpus.identity(), **tokens}


def check_text(checkpoint: Checkpoint, corpus: Corpus) -> None:
    """Is it the text of the checkpoint, in the same tokens?  Errors: CheckpointError."""
    was, now = checkpoint.content["text"], text(corpus)
    if was["tokens_sha256"] != now["tokens_sha256"]:
        there, here = (
            f"{t['name']}, {t['size']} bytes, {t['tokens']} tokens, sha256 {t['sha256'][:12]}"
            for t in (was, now)
        )
        raise CheckpointError(
            f"a run goes on with the text and the tokens that it had: {there} there; {here} here. "
            "Use --data with the same text, and --weights where they brought the tokenizer."
        )


def _known(config: Any, checkpoint: Checkpoint, part: str) -> Any:
    saved, names = checkpoint.content[part], {field.name for field in fields(config)}
    if unknown := ", ".join(sorted(set(saved) - names)):
        raise CheckpointError(
            f"a checkpoint's settings must be known: {checkpoint.path} was saved by tparallel "
            f"{checkpoint.content['tparallel']} with {unknown} in its {part}. Use that version."
        )
    return config(**saved)


def _changes(saved: Any, wanted: Any) -> dict[str, tuple]:
    old, new = as_dict(saved), as_dict(wanted)
    return {name: (old[name], new[name]) for name in old if old[name] != new[name]}


def _flags(names: dict) -> str:
    return ", ".join("--" + name.replace("_", "-") for name in names)
