"""Aquila2 is Llama: logits and gradients equal those of transformers, for all head layouts and rope variants."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from aquila2 import Aquila2Config, Aquila2ForCausalLM

transformers = pytest.importorskip("transformers")

BASE = Aquila2Config(
    vocab_size=320,
    hidden_size=192,
    intermediate_size=512,
    num_hidden_layers=3,
    num_attention_heads=12,
    num_key_value_heads=12,
    max_position_embeddings=64,
    initializer_range=0.08,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=None,  # transformers gives the row of the padding id no gradient
)
HEADS: dict[str, dict[str, Any]] = {
    "mha": {},
    "gqa 8": {"num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 24},
    "gqa 6": {"num_key_value_heads": 2},
    "head dim 64": {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 64},
    "biases": {"attention_bias": True},
    "tied": {"tie_word_embeddings": True},
}
ROPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "theta 1e6": {"rope_theta": 1e6},
    "linear": {"rope_scaling": "linear", "rope_scaling_factor": 4.0},
    "dynamic": {"rope_scaling": "dynamic", "rope_scaling_factor": 2.0},
}
CASES = [(heads, "plain") for heads in HEADS] + [("gqa 6", rope) for rope in ROPES if rope != "plain"]


def pair(config: Aquila2Config) -> tuple[Aquila2ForCausalLM, Any]:
    """Our model and transformers' with the same weights; norm gains and biases are random too."""
    ours = Aquila2ForCausalLM(config)
    with torch.no_grad():
        for parameter in ours.parameters():
            if parameter.dim() == 1:
                parameter.copy_(torch.rand_like(parameter) + 0.5)
    entries = {key: value for key, value in config.to_hf().items() if key not in ("architectures", "model_type")}
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**entries, attn_implementation="sdpa"))
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def assert_close(ours: Tensor, theirs: Tensor, what: str, tolerance: float = 2e-5) -> None:
    scale = float(theirs.detach().abs().max())
    error = float((ours - theirs).detach().abs().max())
    assert error <= tolerance * max(scale, 1e-6), f"{what}: error {error:.3g} at scale {scale:.3g}"


@pytest.mark.parametrize("seqlen", [7, 100], ids=["short", "beyond max_position"])
@pytest.mark.parametrize(("heads", "rope"), CASES)
def test_logits_and_gradients(heads: str, rope: str, seqlen: int) -> None:
    ours, theirs = pair(BASE.replace(**HEADS[heads], **ROPES[rope]))
    ids = torch.randint(320, (2, seqlen))
    output = ours(ids[:, :-1], ids[:, 1:])
    expected = theirs(ids[:, :-1]).logits
    assert_close(output.logits, expected, "logits")
    expected_loss = F.cross_entropy(expected.flatten(0, 1), ids[:, 1:].flatten())
    assert output.loss.item() == pytest.approx(expected_loss.item(), rel=1e-6)

    output.loss.backward()
    expected_loss.backward()
    gradients = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert_close(parameter.grad, gradients[name].grad, name, 1e-4)


@pytest.mark.parametrize("seqlen", [33, 100], ids=["short", "beyond max_position"])
@pytest.mark.parametrize("heads", ["mha", "gqa 6", "head dim 64"])
@pytest.mark.parametrize("rope", ROPES)
def test_interleaved_rope_is_half_split_rope_with_permuted_channels(heads: str, rope: str, seqlen: int) -> None:
    config = BASE.replace(**HEADS[heads], **ROPES[rope], rope_interleaved=True)
    ours, theirs = pair(config)
    # Channel 2i + j of the interleaved layout is channel i + j D / 2 of the half-split one.
    order = torch.arange(config.head_dim).view(-1, 2).T.flatten()

    def half_split(name: str, rows: Tensor) -> Tensor:
        """The rows of q_proj and k_proj in the order that transformers wants; other tensors as they are."""
        if not name.endswith(("q_proj.weight", "k_proj.weight")):
            return rows
        return rows.unflatten(0, (-1, config.head_dim))[:, order].flatten(0, 1)

    theirs.load_state_dict({name: half_split(name, tensor) for name, tensor in ours.state_dict().items()})
    ids = torch.randint(320, (2, seqlen))
    output, expected = ours(ids[:, :-1], ids[:, 1:]), theirs(ids[:, :-1]).logits
    assert_close(output.logits, expected, "logits")

    output.loss.backward()
    F.cross_entropy(expected.flatten(0, 1), ids[:, 1:].flatten()).backward()
    gradients = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert_close(half_split(name, parameter.grad), gradients[name].grad, name, 1e-4)


def test_packed_documents_equal_separate_ones() -> None:
    ours, theirs = pair(BASE.replace(num_key_value_heads=2))
    lengths = [5, 1, 26, 16]
    ids = torch.randint(320, (2, 24))
    bounds = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)
    packed = ours(ids, cu_seqlens=bounds, max_seqlen=26).logits.flatten(0, 1)
    separate = [theirs(document[None]).logits[0] for document in ids.flatten().split(lengths)]
    assert_close(packed, torch.cat(separate), "logits")


def test_activation_checkpointing_changes_no_bit() -> None:
    ours, _ = pair(BASE.replace(num_key_value_heads=2))
    ids = torch.randint(320, (2, 40))
    gradients = []
    for enabled in (False, True):
        ours.set_activation_checkpointing(enabled)
        ours.train().zero_grad()
        ours(ids[:, :-1], ids[:, 1:]).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in ours.parameters()])
    assert all(torch.equal(plain, again) for plain, again in zip(*gradients, strict=True))


def test_the_loss_alone_is_that_of_the_logits() -> None:
    ours, _ = pair(BASE.replace(num_key_value_heads=2))
    ids, targets = torch.randint(320, (2, 40)), torch.randint(320, (2, 40))
    targets[0, 5:20] = -100
    bounds = torch.tensor([0, 17, 40, 80], dtype=torch.int32)
    gradients = []
    for loss in (ours(ids, targets, cu_seqlens=bounds).loss, ours.loss(ids, targets, cu_seqlens=bounds)):
        ours.zero_grad()
        loss.backward()
        gradients.append({"loss": loss} | {name: parameter.grad for name, parameter in ours.named_parameters()})
    for name, expected in gradients[0].items():
        assert_close(gradients[1][name], expected, name)
    assert ours.loss(ids, torch.full_like(ids, -100)).item() == 0


def test_bf16_autocast_keeps_the_residual_stream_wide() -> None:
    ours, theirs = pair(BASE.replace(num_key_value_heads=2))
    seen = []
    ours.model.norm.register_forward_hook(lambda module, inputs, output: seen.append(inputs[1].dtype))
    ids = torch.randint(320, (2, 40))
    with torch.autocast("cpu", torch.bfloat16):
        output = ours(ids[:, :-1], ids[:, 1:])
        alone = ours.loss(ids[:, :-1], ids[:, 1:])
    output.loss.backward()
    alone.backward()
    assert seen == [torch.float32] * 2
    assert output.loss.dtype == alone.dtype == torch.float32
    assert alone.item() == pytest.approx(output.loss.item(), rel=1e-2)
    expected = theirs(ids[:, :-1]).logits
    assert_close(output.logits.float(), expected, "logits", 0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_weights(dtype: torch.dtype) -> None:
    ours, theirs = pair(BASE.replace(num_key_value_heads=2))
    ids = torch.randint(320, (2, 40))
    expected = theirs(ids).logits
    assert_close(ours.to(dtype)(ids).logits.float(), expected, "logits", 0.05)


def test_mlp_is_swappable() -> None:
    class Halved(torch.nn.Module):
        def __init__(self, config: Aquila2Config, layer: int) -> None:
            super().__init__()
            self.scale = 0.5 * layer

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale

    model = Aquila2ForCausalLM(BASE, mlp=Halved)
    assert model(torch.randint(320, (1, 5))).logits.shape == (1, 5, 320)
    assert not any("gate_proj" in name for name, _ in model.named_parameters())


def test_initialisation() -> None:
    model = Aquila2ForCausalLM(BASE.replace(norm_init=0.3, initializer_range=0.0165))
    assert torch.equal(model.model.norm.weight, torch.full((192,), 0.3))
    assert float(model.lm_head.weight.detach().std()) == pytest.approx(0.0165, rel=0.05)
