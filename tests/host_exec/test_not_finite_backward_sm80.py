"""NaN and Inf in the backward's operands: they reach gradients of those who see them, and of the others not a bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flagattn.testing import AttentionCase, AttentionInputs, make_inputs
from tests.host_exec import kernels
from tests.host_exec.kernels_backward import attention_backward_sm80
from tests.host_exec.test_not_finite_sm80 import DTYPES, poisoned

LENGTH, KEY, ROW = 200, 150, 100
WINDOWS = [(-1, 0), (25, 30)]
WIDTHS = [(64, torch.nan), (128, torch.inf), (128, torch.nan), (256, torch.inf)]
GPUS = [80, 89]  # by compute capability: those of the second kind have smaller tiles


def gradients(case: AttentionCase, inputs: AttentionInputs, *, dout: Tensor | None = None) -> dict[str, Tensor]:
    results = kernels.attention_forward_sm80(case, inputs)
    return attention_backward_sm80(case, inputs, results["out"], results["lse"], dout=dout)


def windowed(window: tuple[int, int], head_dim: int) -> AttentionCase:
    return AttentionCase("windowed", LENGTH, LENGTH, heads_q=2, heads_k=1, head_dim=head_dim, window_size=window)


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize(("head_dim", "value"), WIDTHS)
@pytest.mark.parametrize("window", WINDOWS)
def test_keys_that_a_row_does_not_see(window: tuple[int, int], head_dim: int, value: float, gpu: int) -> None:
    kernels.set_schedule(seed=1, copies="random", compute_capability=gpu)
    case = windowed(window, head_dim)
    inputs = make_inputs(case, DTYPES[head_dim // 64 % 2])
    clean = gradients(case, inputs)
    dq = gradients(case, poisoned(poisoned(inputs, "k", KEY, value), "v", KEY, value))["dq"]
    first, end = KEY - window[1], LENGTH if window[0] < 0 else KEY + window[0] + 1
    assert torch.equal(dq[0, :first], clean["dq"][0, :first]) and torch.equal(dq[0, end:], clean["dq"][0, end:])
    assert not dq[0, first:end].isfinite().all(-1).any()


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize(("head_dim", "value"), WIDTHS)
@pytest.mark.parametrize("window", WINDOWS)
def test_rows_that_do_not_see_a_key(window: tuple[int, int], head_dim: int, value: float, gpu: int) -> None:
    kernels.set_schedule(seed=2, compute_capability=gpu)
    case = windowed(window, head_dim)
    inputs = make_inputs(case, DTYPES[head_dim // 64 % 2])
    clean = gradients(case, inputs)
    first, end = 0 if window[0] < 0 else ROW - window[0], ROW + window[1] + 1
    dout = inputs.dout.clone()
    dout[0, ROW, :, 3] = value
    by_query = gradients(case, poisoned(inputs, "q", ROW, value))
    by_gradient = gradients(case, inputs, dout=dout)
    for ours in (by_query, by_gradient):
        for name in ("dk", "dv"):
            assert torch.equal(ours[name][0, end:], clean[name][0, end:])
            assert torch.equal(ours[name][0, :first], clean[name][0, :first])
            assert not ours[name][0, first:end].isfinite().all()
    assert not by_gradient["dv"][0, first:end, :, 3].isfinite().any()
    others = torch.arange(LENGTH) != ROW
    assert torch.equal(by_gradient["dq"][0, others], clean["dq"][0, others])


@pytest.mark.parametrize("causal", [False, True])
def test_the_other_side_of_piecewise_attention(causal: bool) -> None:
    kernels.set_schedule(seed=3)
    case = AttentionCase("piecewise", LENGTH, LENGTH, heads_q=4, heads_k=2, dist_threshold=30, causal=causal)
    inputs = make_inputs(case, torch.bfloat16)
    clean = gradients(case, inputs)
    far_key = gradients(case, poisoned(inputs, "k2", ROW, torch.nan))
    near_key = gradients(case, poisoned(inputs, "k", ROW, torch.nan))
    far_query = gradients(case, poisoned(inputs, "q2", ROW, torch.nan))
    near_query = gradients(case, poisoned(inputs, "q", ROW, torch.nan))
    for name in ("dq", "dq2"):
        assert torch.equal(far_key[name][0, :130], clean[name][0, :130])
        assert torch.equal(near_key[name][0, 130:], clean[name][0, 130:])
    assert torch.equal(far_query["dk2"][0, 71:], clean["dk2"][0, 71:])
    assert torch.equal(near_query["dk"][0, :71], clean["dk"][0, :71])
    if causal:
        for ours in (far_query, near_query):
            for name in ("dk", "dk2", "dv"):
                assert torch.equal(ours[name][0, 101:], clean[name][0, 101:])


@pytest.mark.parametrize(("kind", "head_dim", "softcap"), [("keep", 64, 3.0), ("bias", 128, 0.0), ("keep", 256, 0.0)])
def test_keys_that_a_mask_hides(kind: str, head_dim: int, softcap: float) -> None:
    kernels.set_schedule(seed=4)
    case = AttentionCase("masked", 110, 150, head_dim=head_dim, softcap=softcap, **{kind: "11qk"})
    inputs, key, seeing = make_inputs(case, torch.bfloat16), 100, 90
    if inputs.keep is not None:
        inputs.keep[..., key], inputs.keep[..., seeing:, key] = True, False
        inputs.keep[..., :5] = True  # every row sees something
    else:
        inputs.operands["bias"][..., seeing:, key] = -torch.inf
    clean = gradients(case, inputs)
    for name in ("k", "v"):
        ours = gradients(case, poisoned(inputs, name, key, torch.nan))
        assert torch.equal(ours["dq"][:, seeing:], clean["dq"][:, seeing:])
        assert ours["dq"][:, :seeing].isnan().any()
        if kind == "bias":
            assert torch.equal(ours["dbias"][..., seeing:, key], clean["dbias"][..., seeing:, key])
    dout = inputs.dout.clone()
    dout[0, 95, :, 3] = torch.nan  # of a row that does not see the key
    for ours in (gradients(case, poisoned(inputs, "q", 95, torch.nan)), gradients(case, inputs, dout=dout)):
        assert torch.equal(ours["dk"][0, key], clean["dk"][0, key])
        assert torch.equal(ours["dv"][0, key], clean["dv"][0, key])
        assert not ours["dv"][0].isfinite().all()


@pytest.mark.parametrize("schedule", [{"seed": seed, "copies": "random"} for seed in range(2)], ids=str)
def test_bits_do_not_depend_on_the_schedule(schedule: dict) -> None:
    case = windowed((25, 30), 128)
    inputs = make_inputs(case, torch.float16)
    inputs = poisoned(poisoned(poisoned(inputs, "k", KEY, torch.inf), "v", KEY, torch.nan), "q", ROW, torch.inf)
    kernels.set_schedule()
    expected = gradients(case, inputs)
    kernels.set_schedule(**schedule)
    for name, ours in gradients(case, inputs).items():
        assert torch.allclose(ours.float(), expected[name].float(), rtol=0, atol=0, equal_nan=True)
