"""Attention over caches on a GPU: the CPU's cases against the oracle and the host-executed kernels, streams, graphs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import flagattn
from flagattn.testing import Cache
from flagattn.testing.tolerance import assert_close_to_oracle
from tests.attention import test_varlen_pages as paged
from tests.attention.test_kvcache import Decode, Problem, make
from tests.attention.test_kvcache_append import KINDS, caches, check_stretches, new_operands
from tests.host_exec.test_attention_decode_sm80 import CASES, DTYPES, by_reference, call_of

pytestmark = pytest.mark.gpu


def moved(cache: Cache, device: str = "cuda") -> Cache:
    names = ("seqlens", "leftpad", "batch_idx", "block_table")
    indices = {name: getattr(cache, name) for name in names}
    there = {name: None if tensor is None else tensor.to(device) for name, tensor in indices.items()}
    return replace(cache, tensors=tuple(tensor.to(device) for tensor in cache.tensors), **there)


def on_gpu(problem: Problem) -> Problem:
    queries = tuple(query.cuda() for query in problem.queries)
    joined = {name: tensor.cuda() for name, tensor in problem.joined.items()}
    return replace(problem, queries=queries, cache=moved(problem.cache), joined=joined)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_the_oracle_and_the_host_executed_kernels(case: Decode, dtype: torch.dtype) -> None:
    problem = make(case, dtype)
    ours = [result.cpu() for result in on_gpu(problem).run()]
    plain, ref64 = by_reference(problem, dtype), by_reference(problem, torch.float64)
    for name, *results in zip(("out", "lse"), ours, plain, ref64):
        assert_close_to_oracle(*results, name)
    out, lse = call_of(problem).run()
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(ours[1], lse, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours[0], out, rtol=2 * eps, atol=eps * 0.25)


@pytest.mark.parametrize("case", paged.CASES, ids=str)
def test_packed_queries(case: paged.Paged) -> None:
    problem = paged.make(case, torch.bfloat16)
    arguments = [tensor.cuda() for tensor in (problem.q, *problem.pages, *problem.packing[:2])]
    options = {
        name: option.cuda() if isinstance(option, Tensor) else option for name, option in problem.options.items()
    }
    out = flagattn.flash_attn_varlen_func(*arguments, *problem.packing[2:], block_table=problem.table.cuda(), **options)
    torch.testing.assert_close(out.cpu(), problem.paged()[0], rtol=2e-2, atol=1e-2)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_append(kind: str, interleaved: bool) -> None:
    cache = caches(2, torch.bfloat16, **KINDS[kind])
    there = moved(cache)
    operands = new_operands(torch.bfloat16)
    tables = torch.randn(2, max(cache.seqlens.tolist()) + 9, 12)
    results = []
    for place, device in ((cache, "cpu"), (there, "cuda")):
        q, k, v = (tensor.to(device) for tensor in operands)
        cos, sin = tables.to(device)
        options = {**place.arguments, "causal": True, "rotary_interleaved": interleaved}
        results.append(flagattn.flash_attn_with_kvcache(q, *place.tensors, k, v, cos, sin, **options).cpu())
    torch.testing.assert_close(results[1], results[0], rtol=2e-2, atol=1e-2)
    check_stretches(moved(there, "cpu"), list(caches(2, torch.bfloat16, **KINDS[kind]).tensors), 1, operands[2])


def test_in_a_graph_and_on_another_stream() -> None:
    """A graph attends to what the lengths and the cache hold when it is replayed."""
    problem = on_gpu(make(Decode("graph", (900, 40), page_size=16), torch.bfloat16, room=700))
    expected = problem.run()
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        again = problem.run()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(again, expected))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = problem.run()
    problem.cache.seqlens -= 7
    shorter = problem.run()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, shorter))
