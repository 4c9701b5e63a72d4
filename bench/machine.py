"""What a result must say about the machine and the software it was measured on."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

# Large results make the C library hand pages back after every call; the page faults of the next call then hide the
# kernel. Ours and the peers run under the same setting (docs/benchmarks.md), and on a heap that has its pages.
GLIBC_TUNABLES = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184"
HEAP_BYTES = 2 << 30

# (vendor, family) -> (first model, last model, name); a virtual machine often hides the marketing name.
_MICROARCHITECTURES: dict[tuple[str, int], list[tuple[int, int, str]]] = {
    ("AuthenticAMD", 0x17): [(0x00, 0x2F, "zen"), (0x30, 0xFF, "zen2")],
    ("AuthenticAMD", 0x19): [
        (0x00, 0x0F, "zen3"),
        (0x10, 0x1F, "zen4"),
        (0x20, 0x5F, "zen3"),
        (0x60, 0xAF, "zen4"),
    ],
    ("AuthenticAMD", 0x1A): [(0x00, 0xFF, "zen5")],
    ("GenuineIntel", 6): [
        (0x3C, 0x46, "haswell"),
        (0x4F, 0x56, "broadwell"),
        (0x55, 0x55, "skylake-sp"),
        (0x6A, 0x6C, "ice-lake-sp"),
        (0x8F, 0x8F, "sapphire-rapids"),
        (0xAD, 0xAE, "granite-rapids"),
        (0xCF, 0xCF, "emerald-rapids"),
    ],
}


def microarchitecture(vendor: str, family: int, model: int, stepping: int) -> str:
    """The core's name, or an empty string for one this table does not know."""
    if (vendor, family, model) == ("GenuineIntel", 6, 0x55) and stepping >= 5:
        return "cascade-lake"
    for first, last, name in _MICROARCHITECTURES.get((vendor, family), []):
        if first <= model <= last:
            return name
    return ""


def core_of(cpu: dict[str, str]) -> str:
    """The core's name from the fields of one /proc/cpuinfo block; of an unknown one what tells most of its speed."""
    numbers = [int(cpu.get(field, "0") or 0) for field in ("cpu family", "model", "stepping")]
    widest = [name for name in ("amx", "avx512") if f" {name}" in f" {cpu.get('flags', '')}"][:1]
    return microarchitecture(cpu.get("vendor_id", ""), *numbers) or "".join(widest)


def machine_slug(cpu: dict[str, str], cores: int) -> str:
    """A folder name such as `amd-epyc-zen3-2c`, from the fields of one /proc/cpuinfo block."""
    model_name = re.sub(r"\(R\)|\(TM\)|\bCPU\b|\bProcessor\b|@.*", " ", cpu.get("model name", "") or platform.machine())
    words = re.findall(r"[a-z0-9.]+", f"{model_name} {core_of(cpu)}".lower())
    return "-".join([*dict.fromkeys(words), f"{cores}c"])


def cpu_fields() -> dict[str, str]:
    """The first block of /proc/cpuinfo; empty where there is none."""
    try:
        block = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in block.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def this_machine() -> str:
    return machine_slug(cpu_fields(), os.cpu_count() or 1)


def last_level_cache_bytes() -> int:
    """The size of the largest cache core 0 can reach, or 32 MiB where the system does not tell."""
    sizes = [32 << 20]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        match = re.fullmatch(r"(\d+)([KM])", path.read_text(encoding="utf-8").strip())
        if match:
            sizes.append(int(match[1]) << (10 if match[2] == "K" else 20))
    return max(sizes)


def touch_heap(size: int = HEAP_BYTES) -> None:
    """Gives the heap `size` bytes of pages that are backed by memory, or a quarter of what is free if that is less.

    Keeping freed memory is not enough. An aligned block needs a little more room than the hole that a block of its size
    left, because small objects have taken the edges, so the heap goes on growing into new pages for many rounds; on a
    virtual machine a new page can cost more than the work on it.
    """
    import torch

    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    blocks = [torch.empty(64 << 20, dtype=torch.uint8).zero_() for _ in range(min(size, free // 4) >> 26)]
    blocks.clear()


def commit() -> str:
    """The short hash of HEAD, with `+` where tracked files but results differ; `unknown` outside a git checkout."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True).stdout

    try:
        changed = [
            line
            for line in git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench/results").splitlines()
            if line
        ]
        return git("rev-parse", "--short=10", "HEAD").strip() + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def describe() -> dict[str, Any]:
    """Everything a chart's caption quotes. Names of hosts and users are left out."""
    import torch

    cpu = cpu_fields()
    vector = [name for name in ("avx2", "fma", "f16c", "avx512f", "amx_bf16") if name in cpu.get("flags", "").split()]
    return {
        "machine": this_machine(),
        "cpu": cpu.get("model name", platform.machine()),
        "microarchitecture": core_of(cpu),
        "vector_extensions": vector,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "last_level_cache_bytes": last_level_cache_bytes(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "glibc_tunables": os.environ.get("GLIBC_TUNABLES", ""),
    }
