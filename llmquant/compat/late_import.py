"""Run something right after another module is imported, so that `import llmquant` need not import transformers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType


def after_import(name: str, callback: Callable[[], None]) -> None:
    """Call `callback` once: now if module `name` is imported already, else as soon as it has been.

    Asked again for what it waits for, it does nothing.
    """
    if name in sys.modules:
        callback()
    elif not any(isinstance(finder, _Watcher) and finder.waits_for(name, callback) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watcher(name, callback))


class _Watcher(MetaPathFinder):
    """Finds nothing itself: lets the others find the module and hangs the callback behind its execution."""

    def __init__(self, name: str, callback: Callable[[], None]) -> None:
        self._name, self._callback = name, callback

    def waits_for(self, name: str, callback: Callable[[], None]) -> bool:
        return (self._name, self._callback) == (name, callback)

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,  # noqa: ARG002 - the signature is Python's
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        if fullname != self._name:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_then_call(module: ModuleType) -> None:
                execute(module)
                self._callback()

            spec.loader.exec_module = execute_then_call  # pyright: ignore[reportAttributeAccessIssue]
        return spec
