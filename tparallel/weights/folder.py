"""A folder of weights, of which every rank reads its own part.

    folder = Folder("smollm")               config.json and the headers: no weights yet
    folder.model                            the ModelConfig
    folder.part("block.3", rank, n)         {name: array} of tensor-parallel rank ``rank`` of ``n``

``Trainer(folder.model, train, layout, comm, start=folder.part)`` starts from the weights: a rank
asks for the layers of its pipeline stage, one after the other, and reads its slices of them.
"""

from pathlib import Path
from typing import Any

import numpy as np

from ..backend import xp
from ..config import replace
from ..errors import WeightsError
from ..serial.parameters import shapes
from ..tensor_parallel.split import cut, shard_shape
from ..tokenizer import Tokenizer, of_folder
from . import blocks, files
from .architectures import Row
from .settings import architecture_of, model_config

SIZES = ("T", "V", "D", "H", "Hkv", "K", "F")  # the letters of the tables


class Folder:
    """``model``, and slices of the parameters.  ``T``: train or evaluate rows shorter than the
    model's; its table of positions, where it has one, is read up to there.  0: the model's own.

    ``bytes_read`` counts the bytes of all slices that this rank has read.
    Errors: WeightsError where the folder is no model that is known and whole.
    """

    def __init__(self, path: str | Path, T: int = 0):
        self.path, where = Path(path), f"{Path(path) / 'config.json'}"
        self.config = files.read_json(self.path / "config.json")
        self.architecture = architecture_of(self.config, where)
        whole = model_config(self.config, where, T)
        if T > whole.T:
            raise WeightsError(
                f"rows are at most as long as those that the model was made for: T = {T}, "
                f"{self.path} has {whole.T}. Use T of at most {whole.T}."
            )
        self.model = replace(whole, T=T or whole.T)
        self.bytes_read = 0
        self._sizes = {letter: getattr(whole, letter) for letter in SIZES}
        self._rows = [*self.architecture.rows(whole)]
        self._stored = self._by_full_name(files.listed(self.path))
        self._check()

    @property
    def dtype(self) -> str:
        """The widest in which a tensor is stored."""
        found = {stored.dtype for stored, _ in self._stored.values()}
        return next(ours for theirs, ours in files.DTYPES.items() if theirs in found)

    def tokenizer(self) -> Tokenizer | None:
        """What makes the model's tokens; None where they are bytes.  Errors: DataError."""
        return of_folder(self.path, self.model.V)

    def part(self, unit: str, rank: int = 0, n: int = 1, dtype: Any = "float32") -> dict:
        """What tp rank ``rank`` of ``n`` holds of a layer (or of ``vocab``, the shared table)."""
        whole = shapes(self.model)[unit]
        out = {
            name: np.empty(shard_shape(name, shape, rank, n), dtype)
            for name, shape in whole.items()
        }
        layer = "embed" if unit == "vocab" else unit
        rows = [row for of, row in self._rows if of == layer and row.ours in whole]
        for file in {self._stored[row.theirs][0].file for row in rows}:
            with files.opened(file) as tensors:
                for row in rows:
                    if self._stored[row.theirs][0].file == file:
                        where = cut(row.ours, whole[row.ours], rank, n)
                        self._read(tensors, row, where, out[row.ours])
        if unit == "vocab" and self.architecture.head in self._stored:
            self._check_copy(rows[0], cut("w_tok", whole["w_tok"], rank, n), out["w_tok"])
        return {name: xp.asarray(a) for name, a in out.items()}

    def _read(self, tensors: Any, row: Row, where: tuple[slice, ...], out: np.ndarray) -> None:
        """One row of the table: this block of theirs into its place in ``out``."""
        ranges = {group[0]: s for group, s in zip(blocks.groups(row.our_dims), where)}
        sizes = {letter: s.stop - s.start for letter, s in ranges.items()}
        theirs = blocks.slices(row.their_dims, self._sizes, ranges)
        found = files.read(tensors, self._stored[row.theirs][1], theirs)
        self.bytes_read += found.nbytes
        mine = out[blocks.slices(row.our_dims, sizes, {})]
        mine[...] = blocks.to_ours(found, row.our_dims, row.their_dims, sizes).reshape(mine.shape)

    def _check_copy(self, row: Row, where: tuple[slice, ...], table: np.ndarray) -> None:
        """A tied model may bring a head along that is a copy of the embedding, and no other."""
        head = row._replace(theirs=self.architecture.head)
        copy = np.empty_like(table)
        with files.opened(self._stored[head.theirs][0].file) as tensors:
            self._read(tensors, head, where, copy)
        if not np.array_equal(copy, table):
            raise WeightsError(
                f"a tied model has one table: in {self.path} {head.theirs} differs from "
                f"{row.theirs}. Set tie_word_embeddings to false in config.json."
            )

    def _by_full_name(self, stored: dict) -> dict[str, tuple[files.Stored, str]]:
        """Each tensor by its full name; some folders leave the prefix away."""
        a = self.architecture
        full = (n if n.startswith(a.prefix) or n == a.head else a.prefix + n for n in stored)
        return {name: (stored[own], own) for name, own in zip(full, stored)}

    def _check(self) -> None:
        """Is every tensor there, of the shape that config.json makes it, and no other?"""
        wanted = {r.theirs: blocks.shape(r.their_dims, self._sizes) for _, r in self._rows}
        a, found = self.architecture, self._stored
        if missing := [name for name in wanted if name not in found]:
            raise WeightsError(
                f"a model must be whole: {self.path} has no {_few(missing)}. Use a complete "
                "copy of the folder, with the config.json that belongs to it."
            )
        spare = [n for n in found if n not in wanted and not n.endswith(a.not_read)]
        if self.model.tied and a.head in spare:
            spare.remove(a.head)  # harmless where it is a copy: ``_check_copy`` looks
        if spare:
            raise WeightsError(
                "every tensor must have a place in the model: of those in "
                f"{self.path} {_few(spare)} has none. Use a plain {a.name}."
            )
        for name, shape in wanted.items():
            if found[name][0].shape != shape:
                raise WeightsError(
                    f"shapes must be those of config.json: {name} is {found[name][0].shape}, by "
                    f"config.json {shape}. Use the config.json that belongs to the weights."
                )


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
