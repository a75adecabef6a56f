"""Import hook for a `sitecustomize`: changes a module as soon as it is imported.

It is on the Python path of a site's processes, where nothing of the checkout is; so it imports nothing of it.
"""

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


class _Changing(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, name: str, change: Callable[[Any], None]) -> None:
        self._name, self._change = name, change

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        """Return the module's spec with this loader."""
        if name != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            self._loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: Any) -> Any:
        """Create the module with the original loader."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Execute the module, then change it."""
        self._loader.exec_module(module)
        self._change(module)


def after_import(name: str, change: Callable[[Any], None]) -> None:
    """Call `change` with the module of this name after its import."""
    sys.meta_path.insert(0, _Changing(name, change))
