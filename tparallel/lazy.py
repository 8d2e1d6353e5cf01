"""Modules that take long to import, and that a process may never need."""

import sys
from importlib.util import LazyLoader, find_spec, module_from_spec
from types import ModuleType


def on_first_use(name: str) -> ModuleType:
    """The module ``name``, imported when something in it is first asked for."""
    if name in sys.modules:
        return sys.modules[name]
    spec = find_spec(name)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(name)
    spec.loader = LazyLoader(spec.loader)
    module = sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
