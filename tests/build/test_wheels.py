"""A wheel built against one torch runs under another; so do sdist and isolated installs. Downloads much: -m slow."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import flagattn

ROOT = Path(flagattn.__file__).parents[1]
TORCHES = ("torch==2.13.0", "torch==2.14.1", "torch==2.11.0")  # the last one is the oldest supported

# Runs in the foreign environment, from outside the checkout.
SMOKE = """
import sys, torch, flagattn
from flagattn import _load
assert "site-packages" in flagattn.__file__, flagattn.__file__
q = torch.randn(2, 37, 6, 40, requires_grad=True)
k, v = (torch.randn(2, 53, 2, 40, requires_grad=True) for _ in range(2))
out = flagattn.flash_attn_func(q, k, v, causal=True)
far = torch.ones(37, 53, dtype=torch.bool).triu(1 + 53 - 37)
kk, vv = (t.repeat_interleave(3, dim=2) for t in (k, v))
scores = torch.einsum("bihd,bjhd->bhij", q, kk) / 40**0.5
want = torch.einsum("bhij,bjhd->bihd", scores.masked_fill(far, float("-inf")).softmax(-1), vv)
assert torch.allclose(out, want, atol=1e-5), (out - want).abs().max()
grads = torch.autograd.grad(out.square().sum(), (q, k, v))
wants = torch.autograd.grad(want.square().sum(), (q, k, v))
assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(grads, wants))
loaded = _load.load_cuda()
built = bool(_load.facts()["cuda_archs"])
assert (loaded.cuda is not None) == built, loaded
if built:
    assert torch._C._dispatch_has_kernel_for_dispatch_key("flagattn::attention_forward", "CUDA")
print("ran under", torch.__version__, "built against", flagattn.build_info().torch_headers)
"""


def run(*command: object, cwd: Path | None = None, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def environments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A Python with each torch."""
    pythons = {}
    for torch in TORCHES:
        folder = tmp_path_factory.mktemp("venv")
        venv.create(folder, with_pip=True)
        pythons[torch] = folder / "bin" / "python"
        run(pythons[torch], "-m", "pip", "install", "-q", torch, "setuptools>=77", "cmake", "ninja", "numpy")
    return pythons


@pytest.mark.slow
@pytest.mark.parametrize("built_against", TORCHES[:2])
def test_wheel_runs_under_every_torch(built_against: str, environments: dict[str, Path], tmp_path: Path) -> None:
    pip = [environments[built_against], "-m", "pip"]
    run(*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("flagattn-*.whl")
    assert "-py3-none-" in wheel.name
    for python in environments.values():
        run(python, "-m", "pip", "install", "-q", "--no-deps", "--force-reinstall", wheel)
        assert "ran under" in run(python, "-c", SMOKE, cwd=tmp_path)


@pytest.mark.slow
def test_isolated_install(tmp_path: Path, environments: dict[str, Path]) -> None:
    """Plain `pip install .`: pip fetches the build requirements, torch included, into a folder of its own."""
    python = environments[TORCHES[0]]
    run(python, "-m", "pip", "install", "-q", "--no-deps", "--force-reinstall", ROOT)
    assert "ran under" in run(python, "-c", SMOKE, cwd=tmp_path)


@pytest.mark.slow
def test_sdist_installs(tmp_path: Path, environments: dict[str, Path]) -> None:
    run(sys.executable, "setup.py", "-q", "sdist", "--dist-dir", tmp_path, cwd=ROOT)
    (archive,) = tmp_path.glob("flagattn-*.tar.gz")
    python = environments[TORCHES[0]]
    pip = [python, "-m", "pip", "install", "-q", "--no-deps", "--force-reinstall", "--no-build-isolation"]
    run(*pip, archive, FLAGATTN_CUDA="OFF")
    assert "ran under" in run(python, "-c", SMOKE, cwd=tmp_path)
