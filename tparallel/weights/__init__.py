"""Weights that others made, and weights for others: folders in Hugging Face's format.

Read in this order: blocks.py (where an array of ours lies in one of theirs), architectures.py (the
tables of names), settings.py (config.json), files.py (safetensors), folder.py (every rank reads
its own slices), export.py (the same tables, the other way), saved.py (a checkpoint in their place).
"""

from .export import check, export_source, export_trainer
from .folder import Folder
from .saved import Saved, Source, opened

__all__ = ["Folder", "Saved", "Source", "check", "export_source", "export_trainer", "opened"]
