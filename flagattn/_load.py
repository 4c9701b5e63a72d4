"""Loads the compiled libraries: `_C` at import, `_C_cuda` where torch has CUDA or on request."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

MINIMUM_TORCH = (2, 11)
FOLDER = Path(__file__).resolve().parent


@dataclass
class LoadedLibraries:
    """Where the libraries lie; `cuda` is None while `_C_cuda` is not loaded, and then `cuda_off` says why."""

    cpu: Path
    cuda: Path | None = None
    cuda_off: str = ""


_loaded: LoadedLibraries | None = None


def load() -> LoadedLibraries:
    """Registers the ops with torch (once); ImportError in one sentence where that is impossible."""
    global _loaded
    if _loaded is None:
        try:
            import torch
        except ImportError as error:
            raise ImportError("flagattn needs torch >= 2.11, and no torch is installed in this environment.") from error
        if tuple(int(part) for part in torch.__version__.split(".")[:2]) < MINIMUM_TORCH:
            raise ImportError(f"flagattn needs torch >= 2.11, but torch {torch.__version__} is installed.")
        path = Path(os.environ.get("FLAGATTN_LIBRARY") or FOLDER / "_C.so")
        if not path.exists():
            raise ImportError(
                f"flagattn is not built: {path} is missing; run `make build` or `pip install --no-build-isolation -e .`"
                " in the checkout, or import it from outside the checkout if it is installed elsewhere."
            )
        try:
            torch.ops.load_library(path)
        except OSError as error:
            raise ImportError(
                f"flagattn's library {path} cannot be loaded under torch {torch.__version__}: {error}"
            ) from error
        _loaded = LoadedLibraries(cpu=path)
        if torch.version.cuda is not None:
            load_cuda()
        else:
            _loaded.cuda_off = f"torch {torch.__version__} has no CUDA"
    return _loaded


def load_cuda() -> LoadedLibraries:
    """Loads `_C_cuda` even where torch has no CUDA (its ops then register but cannot run); failure is kept as text."""
    import torch

    loaded = load()
    if loaded.cuda is None:
        path = FOLDER / "_C_cuda.so"
        if not path.exists():
            loaded.cuda_off = facts().get("cuda_off") or f"{path} is missing"
            return loaded
        try:
            torch.ops.load_library(path)
            loaded.cuda, loaded.cuda_off = path, ""
        except OSError as error:
            loaded.cuda_off = f"{path} cannot be loaded: {error}"
    return loaded


def facts() -> dict[str, str]:
    """What CMake wrote into `_C`: compiler, torch_headers, cpu_levels, cuda_archs, cuda_off, ..."""
    import torch

    lines = torch.ops.flagattn.build_facts().splitlines()
    return dict(line.split("=", 1) for line in lines)


load()
