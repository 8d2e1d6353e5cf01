"""Checkpoints: what training goes on from, saved by any layout and loaded by any other.

    DIR/step-000100/manifest.json           what is in it, and a checksum of every file
                    rank-0000.safetensors   what rank 0 was the first to hold: {tensor: part}

Reading order:

1. ``box.py``       a flat range of a tensor as boxes; where boxes overlap
2. ``pieces.py``    which boxes of which tensors lie where in this rank's vectors
3. ``save.py``      each rank writes what it owns; then the checkpoint appears, all at once
4. ``load.py``      each rank reads where what it keeps overlaps with what was written
5. ``manifest.py``, ``folder.py``   what is whole, what is not and why, which one is the newest
6. ``resume.py``    the settings of a run that goes on

A *checkpoint* holds parameters (in half precision: the float32 master weights, of which the halves
are roundings), AdamW's moments, the number of updates, the loss scale, and all settings.  Random
numbers and batches are functions of the seed and the step: these two are their whole state.

It is written under another name, forced to the disk and then renamed: whatever ends the job at
whatever moment, ``step-000100`` is whole or is not there, and older ones are not touched before.
Nothing in it is executed when it is read (no pickle).
"""

from .folder import Checkpoint, newest, opened
from .load import load
from .save import Saver

__all__ = ["Checkpoint", "Saver", "load", "newest", "opened"]
