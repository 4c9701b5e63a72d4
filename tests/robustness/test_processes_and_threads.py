"""Many threads of one process, forked children, and calls from inside other people's parallel regions."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

import flagattn


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = ((2, 150, 6, 64), (2, 300, 2, 64), (2, 300, 2, 64))
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)  # type: ignore[return-value]


def everything() -> list[Tensor]:
    """A call of every op, forward and, where there is one, backward."""
    leaves = [t.requires_grad_() for t in inputs()]
    out, lse = flagattn.flash_attn_func(*leaves, causal=True, return_lse=True)
    weight = torch.ones(64, requires_grad=True)
    y = flagattn.swiglu(flagattn.rms_norm(out, weight), out)
    angles = torch.outer(torch.arange(150), torch.linspace(0.01, 1.0, 32))
    z = flagattn.batch_invariant_linear(flagattn.apply_rotary(y, angles.cos(), angles.sin()), torch.eye(64)[:40])
    targets = torch.arange(2 * 150 * 6).view(2, 150, 6) % 40
    losses = flagattn.cross_entropy(z, targets) + flagattn.linear_cross_entropy(z, torch.eye(70)[:, :40], targets % 70)
    gradients = torch.autograd.grad(y.sum() + lse.sum() + losses, [*leaves, weight])
    return [out.detach(), lse.detach(), losses.detach(), *gradients, *without_gradients(*leaves)]


@torch.no_grad()
def without_gradients(q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
    """Decoding with an append, masks and column sums."""
    caches = [torch.cat([rows, torch.zeros(2, 7, 2, 64)], 1) for rows in (k, v)]
    step, step_lse = flagattn.flash_attn_with_kvcache(
        q[:, :2], *caches, k[:, :2], v[:, :2], cache_seqlens=300, causal=True, return_lse=True
    )
    near = flagattn.piecewise_attn_func(q, k, -q, k, v, 20, causal=True)
    bhsd = [t.transpose(1, 2) for t in (q, k, v)]
    keep = torch.arange(300) % 7 > torch.arange(150)[:, None] % 3
    masked = flagattn.scaled_dot_product_attention(*bhsd, attn_mask=keep, enable_gqa=True)
    _, lse = flagattn.flash_attn_func(q, k, v, return_lse=True)
    return [step, step_lse, *caches, near, masked, flagattn.attention_column_sums(q, k, lse)]


def assert_same(ours: list[Tensor], expected: list[Tensor]) -> None:
    assert all(torch.equal(one, other) for one, other in zip(ours, expected, strict=True))


@pytest.mark.parametrize("threads_of_torch", [1, 2])
def test_calls_from_many_threads_at_once(threads_of_torch: int, set_threads) -> None:
    set_threads(threads_of_torch)
    expected = everything()
    with ThreadPoolExecutor(8) as pool:
        for result in pool.map(lambda _: everything(), range(32)):
            assert_same(result, expected)


def test_threads_come_and_go() -> None:
    """Scratch memory belongs to a thread: short-lived ones neither leak it nor free what others use."""
    expected = everything()
    for _ in range(20):
        with ThreadPoolExecutor(2) as pool:
            assert_same(pool.submit(everything).result(), expected)


def in_forked_child(work: Callable[[], list[Tensor]]) -> list[Tensor]:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=lambda: queue.put([t.numpy() for t in work()]), daemon=True)
    child.start()
    try:
        return [torch.from_numpy(array) for array in queue.get(timeout=60)]
    finally:
        child.join(10)
        child.kill()


def everything_on_one_thread() -> list[Tensor]:
    torch.set_num_threads(
        1
    )  # as torch's DataLoader does: its own ops wait for OpenMP's pool, which a fork leaves behind
    return everything()


def test_a_forked_child_computes_the_same() -> None:
    expected = everything()
    assert_same(in_forked_child(everything_on_one_thread), expected)


def test_kernels_do_not_wait_in_a_forked_child_for_threads_of_its_parent(set_threads) -> None:
    set_threads(2)
    q, k, v = inputs()

    def work() -> list[Tensor]:
        out, lse = flagattn.flash_attn_func(q, k, v, causal=True, return_lse=True)
        return [out, lse, flagattn.rms_norm(q, torch.ones(64)), flagattn.swiglu(k, v)]

    expected = work()
    torch.exp(torch.zeros(2**20))  # torch's pool too has its threads now
    assert_same(in_forked_child(work), expected)


def test_a_loader_s_workers_may_call_ops() -> None:
    class Rows(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> Tensor:
            return flagattn.rms_norm(torch.full((3, 8), float(index + 1)), torch.ones(8))

    loader = torch.utils.data.DataLoader(Rows(), batch_size=2, num_workers=1)
    torch.testing.assert_close(torch.cat(list(loader)), torch.ones(4, 3, 8), rtol=1e-4, atol=1e-4)


def test_inference_mode_and_no_grad_give_the_same_bits() -> None:
    q, k, v = inputs()
    expected = flagattn.flash_attn_func(q, k, v)
    with torch.inference_mode():
        assert torch.equal(flagattn.flash_attn_func(q, k, v), expected)
    with torch.no_grad():
        assert torch.equal(flagattn.flash_attn_func(q.requires_grad_(), k, v), expected)
