"""`import flash_attn` finds this library's package of that name: switched on by hand, and off again."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType, TracebackType
from typing import Any

# What a program imports -> what it gets.
PACKAGES = {
    "flash_attn": "flagattn.compat.flash_attn",
    "flash_attn_3": "flagattn.compat.flash_attn_3",
    "flash_attn_interface": "flagattn.compat.flash_attn_3.flash_attn_interface",
    "flag_attn": "flagattn.compat.flag_attn",
    "vllm_flash_attn": "flagattn.compat.vllm",
}


class Installation:
    """What `install` did; leaving it as a context manager undoes it, but for names that were installed before."""

    def __init__(self, names: tuple[str, ...], added: tuple[str, ...]) -> None:
        self.names = names
        self._added = added

    def __enter__(self) -> Installation:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if self._added:
            uninstall(*self._added)

    def __repr__(self) -> str:
        return f"flagattn.compat.install({', '.join(map(repr, self.names))})"


def install(*names: str) -> Installation:
    """Let `import NAME` and its submodules resolve to flagattn's package of that name, in this process only.

    Args:
        names: "flash_attn", "flash_attn_3", "flash_attn_interface" (FlashAttention-3's module by its old name),
            "flag_attn" or "vllm_flash_attn".

    Returns:
        An object that undoes the installation where it is used as a context manager; `uninstall` does too.

    Raises:
        ValueError: no name is given, or one that is not in the list.
        RuntimeError: the real package of that name is already imported; modules that hold it would keep it.

    A real package that is installed but not yet imported is hidden until `uninstall`. Nothing is written to disk, and
    no distribution metadata is made up: programs that look for an installed distribution of the name find none.
    """
    if not names:
        raise ValueError(f"no name is given; names are {', '.join(PACKAGES)}")
    for name in names:
        if name not in PACKAGES:
            raise ValueError(f"name is {name!r}; it must be one of {', '.join(PACKAGES)}")
        present = sys.modules.get(name)
        if present is not None and not _is_ours(present):
            where = getattr(present, "__file__", None) or "an unknown place"
            raise RuntimeError(
                f"{name} is already imported from {where}; call flagattn.compat.install({name!r}) before anything "
                "imports it"
            )
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    added = tuple(name for name in dict.fromkeys(names) if name not in _active)
    _active.update(dict.fromkeys(added))
    importlib.invalidate_caches()
    return Installation(names, added)


def uninstall(*names: str) -> None:
    """Undo `install` of the named packages, or of all; names that are not installed are passed over.

    Modules that imported something meanwhile keep what they hold; the next `import` finds the real package or none.
    """
    for name in names or tuple(_active):
        if _active.pop(name, False) is False:
            continue
        for alias in [key for key in sys.modules if key == name or key.startswith(f"{name}.")]:
            if _is_ours(sys.modules[alias]):
                del sys.modules[alias]
    if not _active:
        sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Finder)]


def installed() -> tuple[str, ...]:
    """The names that now resolve to flagattn's packages."""
    return tuple(_active)


# In the order of installation.
_active: dict[str, None] = {}


def _is_ours(module: ModuleType) -> bool:
    return module.__name__.startswith("flagattn.compat.")


class _Finder(importlib.abc.MetaPathFinder):
    """Knows the installed names and every submodule that flagattn's package has."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        top, dot, rest = fullname.partition(".")
        if top not in _active:
            return None
        real = PACKAGES[top] + dot + rest
        found = importlib.util.find_spec(real)
        if found is None:
            return None
        spec = importlib.machinery.ModuleSpec(fullname, _Loader(real), origin=found.origin)
        spec.submodule_search_locations = found.submodule_search_locations
        return spec


class _Loader(importlib.abc.Loader):
    """Hands out the module of the real name itself, so that both names hold the same objects."""

    def __init__(self, real: str) -> None:
        self.real = real

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = importlib.import_module(self.real)
        self.own_spec: Any = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.own_spec  # the import system has just put the alias's in its place
