"""`import flash_attn` finds ours, and can be made to stop."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterator

import pytest

from flagattn import compat


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    yield
    compat.uninstall()


def test_the_package_and_its_submodules_are_ours() -> None:
    compat.install("flash_attn")
    import flash_attn
    from flash_attn.bert_padding import unpad_input
    from flash_attn.flash_attn_interface import _flash_attn_forward, flash_attn_func
    from flash_attn.layers.rotary import apply_rotary_emb

    real = importlib.import_module("flagattn.compat.flash_attn")
    assert flash_attn is real and flash_attn.flash_attn_func is flash_attn_func
    assert unpad_input.__module__ == "flagattn.compat.flash_attn.bert_padding"
    assert _flash_attn_forward is importlib.import_module(flash_attn_func.__module__)._flash_attn_forward
    assert apply_rotary_emb.__module__ == "flagattn.compat.flash_attn.layers.rotary"
    assert real.__spec__.name == "flagattn.compat.flash_attn"  # importing it by an alias left it as it was
    assert importlib.reload(real) is real


def test_uninstalling_leaves_no_trace() -> None:
    before = list(sys.meta_path)
    with compat.install("flash_attn", "flag_attn"):
        import flash_attn.layers.rotary  # noqa: F401

        assert compat.installed() == ("flash_attn", "flag_attn")
    assert compat.installed() == () and sys.meta_path == before
    assert not [name for name in sys.modules if name.split(".")[0] == "flash_attn"]
    with pytest.raises(ImportError):
        importlib.import_module("flash_attn")
    compat.uninstall("flash_attn")  # a second time does nothing


def test_an_inner_installation_takes_away_only_what_it_added() -> None:
    with compat.install("flash_attn"):
        with compat.install("flash_attn", "flag_attn"):
            assert set(compat.installed()) == {"flash_attn", "flag_attn"}
        assert compat.installed() == ("flash_attn",)
        with compat.install("flash_attn"):
            pass
        assert compat.installed() == ("flash_attn",)
    assert compat.installed() == ()


def test_a_real_package_that_is_imported_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    other = types.ModuleType("flash_attn")
    other.__file__ = "elsewhere/flash_attn/__init__.py"
    monkeypatch.setitem(sys.modules, "flash_attn", other)
    with pytest.raises(RuntimeError, match="already imported from elsewhere/flash_attn"):
        compat.install("flash_attn")
    assert compat.installed() == ()


def test_a_real_package_that_is_only_installed_is_hidden_until_uninstall(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "flag_attn.py").write_text("real = True\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with compat.install("flag_attn"):
        assert not hasattr(importlib.import_module("flag_attn"), "real")
    try:
        assert importlib.import_module("flag_attn").real
    finally:
        sys.modules.pop("flag_attn", None)


@pytest.mark.parametrize(
    ("names", "words"), [((), "no name is given"), (("xformers",), "'xformers'; it must be one of")]
)
def test_wrong_names_are_refused(names: tuple[str, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        compat.install(*names)


@pytest.mark.parametrize(
    ("module", "function"),
    [
        ("flag_attn.flash", "attention"),
        ("flag_attn.paged", "attention"),
        ("flag_attn.piecewise", "attention"),
        ("flag_attn.split_kv", "attention"),
        ("flag_attn.total", "total_attention"),
        ("flag_attn.testing", "recompute_mask"),
        ("flag_attn.testing.flash", "attention"),
        ("vllm_flash_attn.flash_attn_interface", "flash_attn_varlen_func"),
        ("vllm_flash_attn.layers.rotary", "apply_rotary_emb"),
        ("vllm_flash_attn.ops.triton.rotary", "apply_rotary"),
    ],
)
def test_submodules_have_their_functions(module: str, function: str) -> None:
    compat.install(module.partition(".")[0])
    found = getattr(importlib.import_module(module), function)
    assert found.__module__.startswith("flagattn.compat.")


@pytest.mark.parametrize("name", ["flash_attn_3", "flash_attn_interface", "flag_attn", "vllm_flash_attn"])
def test_every_name_can_be_installed(name: str) -> None:
    compat.install(name)
    assert importlib.import_module(name).__name__.startswith("flagattn.compat.")


def test_a_submodule_that_is_not_mirrored_is_not_found() -> None:
    compat.install("flash_attn")
    with pytest.raises(ModuleNotFoundError, match=r"flash_attn\.nothing"):
        importlib.import_module("flash_attn.nothing")
