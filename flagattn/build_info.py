"""What is installed, what runs on this machine, and what is off and why."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
from dataclasses import dataclass, field

from flagattn import _load

CPU_LEVELS = ("scalar", "avx2", "avx512", "amx")

# Packages that parts of the project need, and the extra that brings them.
OPTIONAL_PACKAGES = {
    "tokenizers": "train",
    "safetensors": "train",
    "yaml": "train",
    "tensorboard": "train",
    "pyarrow": "train",
}


@dataclass(frozen=True)
class BuildInfo:
    """The answer of `build_info()`; `str()` lays it out as `python -m flagattn` prints it."""

    version: str
    python: str
    torch: str
    torch_cuda: str | None
    torch_headers: str  # the torch it was compiled against; any torch >= 2.11 loads it
    compiler: str
    build_type: str
    library: str
    cpu_levels: tuple[str, ...]  # built
    cpu_level: str  # runs
    cpu_level_reason: str
    cuda_library: str | None  # loaded
    cuda_compiler: str
    cuda_archs: tuple[str, ...]  # built
    gpus: tuple[str, ...]
    off: dict[str, str] = field(default_factory=dict)  # what -> why

    def __str__(self) -> str:
        rows = [
            ("flagattn", self.version),
            ("python", self.python),
            ("torch", f"{self.torch} (CUDA {self.torch_cuda or 'none'}; built against {self.torch_headers})"),
            ("library", self.library),
            ("compiler", f"{self.compiler}, {self.build_type}"),
            ("CPU level", f"{self.cpu_level}: {self.cpu_level_reason} (built: {', '.join(self.cpu_levels)})"),
            ("CUDA library", self.cuda_library or "not loaded"),
            ("CUDA archs", f"{', '.join(self.cuda_archs)} ({self.cuda_compiler})" if self.cuda_archs else "none built"),
            ("GPUs", ", ".join(self.gpus) or "none"),
        ]
        rows += [(f"off: {what}", why) for what, why in self.off.items()]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def build_info() -> BuildInfo:
    """Collects versions, libraries, CPU level, CUDA archs, GPUs and the reasons of what is off.

    Returns: `BuildInfo`. Raises: ImportError where the library is not built or torch is too old. Not differentiable.
    Source: flagattn/build_info.py; csrc/torch/info.cpp holds what the build knows.
    """
    import torch

    loaded = _load.load()
    facts = _load.facts()
    level, reason = torch.ops.flagattn.cpu_level()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.version.cuda else []
    return BuildInfo(
        version=_version(),
        python=f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        torch=torch.__version__,
        torch_cuda=torch.version.cuda,
        torch_headers=facts["torch_headers"],
        compiler=facts["compiler"],
        build_type=facts["build_type"],
        library=str(loaded.cpu),
        cpu_levels=tuple(facts["cpu_levels"].split()),
        cpu_level=level,
        cpu_level_reason=reason,
        cuda_library=str(loaded.cuda) if loaded.cuda else None,
        cuda_compiler=facts["cuda_compiler"],
        cuda_archs=tuple(facts["cuda_archs"].split()),
        gpus=tuple(gpus),
        off=_what_is_off(loaded, bool(gpus)),
    )


def cpu_level() -> str:
    """The instruction set that the CPU kernels use: "scalar", "avx2", "avx512" or "amx".

    It is the best one of the host, or what the environment variable FLAGATTN_CPU_LEVEL asks for, decided at the first
    call of any op. Raises: ImportError where the library is not built. Not differentiable.
    Source: csrc/arch/cpu_level.cpp.
    """
    import torch

    _load.load()
    level: str = torch.ops.flagattn.cpu_level()[0]
    return level


def _version() -> str:
    try:
        return importlib.metadata.version("flagattn")
    except importlib.metadata.PackageNotFoundError:
        return "not installed (run from its folder)"


def _what_is_off(loaded: _load.LoadedLibraries, has_gpu: bool) -> dict[str, str]:
    off = {}
    if loaded.cuda is None:
        off["CUDA kernels"] = loaded.cuda_off
    elif not has_gpu:
        off["CUDA kernels"] = "torch finds no GPU"
    missing: dict[str, list[str]] = {}
    for package, extra in OPTIONAL_PACKAGES.items():
        if importlib.util.find_spec(package) is None:
            missing.setdefault(extra, []).append(package)
    for extra, packages in missing.items():
        off[f"[{extra}]"] = f"{', '.join(packages)} missing; run `pip install 'flagattn[{extra}]'`"
    return off
