"""The same inputs through the host-executed kernels and through the GPU: what bits differ, and whether all is right.

gpu_compare.py record FILE            the host's results, on any machine that can build the runner; MAX_JOBS processes
gpu_compare.py compare FILE OUT.json  the GPU's beside them, and both held to the contract: the float64 oracle, and what
                                      plain PyTorch errs in the same dtype. Exits with 1 where the GPU is wrong.

A record that was cut off holds what it had; the GPU's results are compared with the oracle all the same.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flagattn.testing import (
    AttentionCase,
    assert_close_to_oracle,
    attention_by_op,
    attention_by_reference,
    make_inputs,
)

DTYPES = (torch.bfloat16, torch.float16)
Task = tuple[AttentionCase, torch.dtype, bool]  # the last: with gradients


def plan() -> list[Task]:
    """Every case that the host runner's tests have, with gradients where the backward has kernels."""
    from tests.host_exec import test_attention_backward_sm80 as backward
    from tests.host_exec import test_attention_forward_sm80 as forward

    tasks = [(case, True) for case in backward.CASES]
    tasks += [(case, False) for case in forward.CASES if case not in backward.CASES]
    return [(case, dtype, with_gradients) for case, with_gradients in tasks for dtype in DTYPES]


def key_of(task: Task) -> str:
    case, dtype, with_gradients = task
    kind = ("piecewise_" if case.is_piecewise else "") + ("backward" if with_gradients else "forward")
    return f"{kind}/{case.name}/{str(dtype).removeprefix('torch.')}"


def on_host(task: Task) -> tuple[str, dict[str, Tensor]]:
    from tests.host_exec import kernels, kernels_backward

    case, dtype, with_gradients = task
    inputs = make_inputs(case, dtype)
    kernels.set_schedule(workers=1)
    results = kernels.attention_forward_sm80(case, inputs)
    if with_gradients:
        results |= kernels_backward.attention_backward_sm80(case, inputs, **results)
    return key_of(task), results


def record(path: Path, tasks: Sequence[Task]) -> None:
    from tests.host_exec.builds import host_exec_module

    host_exec_module()  # built once, before the processes ask for it
    path.parent.mkdir(parents=True, exist_ok=True)
    results: dict[str, dict[str, Tensor]] = {}
    saved = time.monotonic()

    def save() -> None:
        temporary = path.with_suffix(".new")
        torch.save(results, temporary)
        temporary.replace(path)

    jobs = int(os.environ.get("MAX_JOBS", str(os.cpu_count())))
    with ProcessPoolExecutor(
        jobs, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        for key, result in pool.map(on_host, tasks):
            results[key] = result
            if time.monotonic() - saved > 10.0:
                save()
                saved = time.monotonic()
    save()
    print(f"{len(results)} of {len(tasks)} recorded")


def largest(difference: Tensor) -> float:
    finite = difference[torch.isfinite(difference)]  # equal infinities differ by NaN
    return float(finite.abs().max()) if finite.numel() else 0.0


def compared(ours: Tensor, host: Tensor | None, plain: Tensor, ref64: Tensor, name: str) -> dict[str, Any]:
    """What is to be told of one result; "wrong" says why it breaks the contract."""
    ours, ref64 = ours.cpu(), ref64.double()
    row: dict[str, Any] = {"gpu_error": largest(ours.double() - ref64), "plain_error": largest(plain.double() - ref64)}
    try:
        assert_close_to_oracle(ours, plain, ref64, name)
    except AssertionError as failure:
        row["wrong"] = str(failure)
    if host is not None:
        differs = (ours != host) & ~(ours.isnan() & host.isnan())
        row["share_of_elements_that_differ"] = float(differs.double().mean()) if differs.numel() else 0.0
        row["gpu_minus_host"] = largest(ours.double() - host.double())
        row["host_error"] = largest(host.double() - ref64)
    return row


def compare(path: Path, out: Path, tasks: Sequence[Task], device: str = "cuda") -> bool:
    recorded: dict[str, dict[str, Tensor]] = torch.load(path) if path.exists() else {}
    result: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name() if device == "cuda" else device,
        "planned": len(tasks),
        "recorded": len(recorded),
        "wrong": [],
        "cases": [],
    }
    written = 0.0
    for task in tasks:
        case, dtype, with_gradients = task
        row: dict[str, Any] = {"case": key_of(task)}
        try:
            ours = attention_by_op(case, make_inputs(case, dtype, device=device), gradients=with_gradients)
        except (RuntimeError, TypeError, ValueError) as error:
            row["wrong"] = f"{type(error).__name__}: {error}"[:500]
            ours = {}
        plain = attention_by_reference(case, make_inputs(case, dtype), dtype, gradients=with_gradients)
        ref64 = attention_by_reference(case, make_inputs(case, dtype), torch.float64, gradients=with_gradients)
        host = recorded.get(key_of(task), {})
        row |= {name: compared(ours[name], host.get(name), plain[name], ref64[name], name) for name in ours}
        if "wrong" in row or any("wrong" in row[name] for name in ours):
            result["wrong"].append(key_of(task))
        result["cases"].append(row)
        if time.monotonic() - written > 5.0:
            out.write_text(json.dumps(result, indent=1))
            written = time.monotonic()
    out.write_text(json.dumps(result, indent=1))
    print(f"{len(tasks)} compared, {len(recorded)} of them recorded by the runner; wrong: {result['wrong'] or 'none'}")
    return not result["wrong"]


if __name__ == "__main__":
    if sys.argv[1] == "record":
        record(Path(sys.argv[2]), plan())
    else:
        sys.exit(0 if compare(Path(sys.argv[2]), Path(sys.argv[3]), plan()) else 1)
