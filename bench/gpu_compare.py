"""The same inputs through the host-executed kernel and through the GPU: how many bits differ, and by how much.

gpu_compare.py record FILE            the host's results, on any machine that can build the runner
gpu_compare.py compare FILE OUT.json  the GPU's beside them, and both beside the float64 oracle
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from flagattn.testing import DENSE_CASES, VARLEN_CASES, attention_by_op, attention_by_reference, make_inputs
from tests.host_exec import kernels

CASES = [case for case in (*DENSE_CASES, *VARLEN_CASES) if kernels.supported_by_sm80(case)]
DTYPES = (torch.bfloat16, torch.float16)


def record(path: Path) -> None:
    kernels.set_schedule()
    results = {}
    for case in CASES:
        for dtype in DTYPES:
            results[f"{case.name}/{dtype}"] = kernels.attention_forward_sm80(case, make_inputs(case, dtype))
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(results, path)


def largest(difference: torch.Tensor) -> float:
    finite = difference[torch.isfinite(difference)]  # equal infinities differ by NaN
    return float(finite.abs().max()) if finite.numel() else 0.0


def compare(path: Path, out: Path) -> bool:
    recorded = torch.load(path)
    rows, right = [], True
    for case in CASES:
        for dtype in DTYPES:
            host = recorded[f"{case.name}/{dtype}"]
            ref64 = attention_by_reference(case, make_inputs(case, dtype), torch.float64, gradients=False)
            gpu = attention_by_op(case, make_inputs(case, dtype, device="cuda"), gradients=False)
            row: dict[str, object] = {"case": case.name, "dtype": str(dtype)}
            for name in ("out", "lse"):
                ours, theirs = gpu[name].cpu().double(), host[name].double()
                differs = (ours != theirs) & ~(ours.isnan() & theirs.isnan())
                row[name] = {
                    "share_of_elements_that_differ": float(differs.double().mean()) if differs.numel() else 0.0,
                    "gpu_minus_host": largest(ours - theirs),
                    "gpu_error": largest(ours - ref64[name]),
                    "host_error": largest(theirs - ref64[name]),
                }
                same_specials = torch.equal(ours.isfinite(), theirs.isfinite())
                allowed = 2 * largest(theirs - ref64[name]) + torch.finfo(gpu[name].dtype).eps
                right = right and same_specials and largest(ours - ref64[name]) <= allowed
            rows.append(row)
            out.write_text(json.dumps({"gpu": torch.cuda.get_device_name(), "cases": rows}, indent=1))
    return right


if __name__ == "__main__":
    if sys.argv[1] == "record":
        record(Path(sys.argv[2]))
    else:
        sys.exit(0 if compare(Path(sys.argv[2]), Path(sys.argv[3])) else 1)
