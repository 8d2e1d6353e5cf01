"""Errors that a user can act on: *rule; values; way out*, the same text on every rank."""


class TParallelError(Exception):
    """Base class.  Raised on every rank alike, before the first message: exit code 2."""


class ConfigError(TParallelError):
    """A model or training setting that cannot be used."""


class LayoutError(TParallelError):
    """A way of splitting that does not fit the model, the batch, or the number of ranks."""


class ScheduleError(TParallelError):
    """A pipeline schedule that is incomplete, out of order, or would deadlock."""


class DataError(TParallelError):
    """A text that cannot be read or is too short to train on."""


class WeightsError(TParallelError):
    """A folder of weights that cannot be read, or that is of a model not computed here."""


class CheckpointError(TParallelError):
    """A checkpoint that cannot be written, or one that is not whole or not of this run."""


class OutOfMemoryError(TParallelError):
    """A rank's memory is full.  Raised on that rank alone; a command then ends the others too."""


class ReplicaError(Exception):
    """Copies that must be equal are not.  Raised on every rank alike, between two steps."""


class NotFiniteError(Exception):
    """A loss or a gradient is NaN or infinite.  Raised on every rank alike, before the update."""

    def __init__(self, text: str, loss: float, norm: float):
        super().__init__(text)
        self.loss, self.norm = loss, norm
