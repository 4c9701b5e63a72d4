"""The numerics contract: an op may err at most twice as much as plain PyTorch in the same dtype does."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def assert_close_to_oracle(
    ours: Tensor, plain: Tensor, ref64: Tensor, name: str = "result", excess: float = 1.0
) -> None:
    """max|ours - ref64| <= excess * (2 max|plain - ref64| + tiny), and the same for the relative L2 norm.

    tiny is 2 eps max|ref64| (2 eps for the relative norm), with eps of ours' dtype. Positions of -inf, +inf and NaN
    must be the oracle's; they are compared first and take no part in the norms. `excess` is 1 but for results that are
    documented to exceed the contract.
    """
    assert ours.shape == ref64.shape, f"{name}: shape {tuple(ours.shape)}, the oracle's is {tuple(ref64.shape)}"
    assert plain.shape == ref64.shape, f"{name}: plain has shape {tuple(plain.shape)}, not {tuple(ref64.shape)}"
    assert ours.dtype == plain.dtype, f"{name}: dtype {ours.dtype}, plain's is {plain.dtype}"
    ours64, plain64, ref64 = ours.detach().double(), plain.detach().double(), ref64.detach().double()

    for kind, test in (("NaN", torch.isnan), ("-inf", torch.isneginf), ("+inf", torch.isposinf)):
        wrong = test(ours64) != test(ref64)
        if wrong.any():
            where = _at(ours64, plain64, ref64, wrong)
            raise AssertionError(f"{name}: {kind} differs at {int(wrong.sum())} of {wrong.numel()} positions, {where}")

    finite = torch.isfinite(ref64)
    error = torch.where(finite, ours64 - ref64, 0.0).abs()
    plain_error = torch.where(finite & torch.isfinite(plain64), plain64 - ref64, 0.0).abs()
    size = torch.where(finite, ref64, 0.0).abs()
    if error.numel() == 0:
        return

    eps = torch.finfo(ours.dtype).eps
    allowed = excess * (2.0 * plain_error.max() + 2.0 * eps * size.max())
    if error.max() > allowed:
        where = _at(ours64, plain64, ref64, error == error.max())
        raise AssertionError(
            f"{name}: max error {error.max():.3e} exceeds {allowed:.3e} (plain's is {plain_error.max():.3e}); "
            f"{int((error > allowed).sum())} of {error.numel()} positions exceed it, the worst {where}"
        )

    norm = size.norm()
    allowed_l2 = 2.0 * plain_error.norm() + 2.0 * eps * norm
    if error.norm() > allowed_l2:
        relative = float(norm) or 1.0
        raise AssertionError(
            f"{name}: relative L2 error {error.norm() / relative:.3e} exceeds {allowed_l2 / relative:.3e} "
            f"(plain's is {plain_error.norm() / relative:.3e})"
        )


def assert_all_close_to_oracle(
    ours: Mapping[str, Tensor],
    plain: Mapping[str, Tensor],
    ref64: Mapping[str, Tensor],
    excess: Mapping[str, float] | None = None,
) -> None:
    """`assert_close_to_oracle` for every result the oracle has."""
    assert set(ours) == set(ref64), f"results {sorted(ours)}, the oracle has {sorted(ref64)}"
    failures = []
    for name in ref64:
        try:
            assert_close_to_oracle(ours[name], plain[name], ref64[name], name, (excess or {}).get(name, 1.0))
        except AssertionError as failure:
            failures.append(str(failure))
    assert not failures, "\n".join(failures)


def _at(ours: Tensor, plain: Tensor, ref64: Tensor, where: Tensor) -> str:
    position = tuple(where.nonzero()[0].tolist())
    return (
        f"at {list(position)}: ours {ours[position].item():.9g}, plain {plain[position].item():.9g}, "
        f"oracle {ref64[position].item():.9g}"
    )
