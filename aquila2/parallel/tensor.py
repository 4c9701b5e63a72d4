"""Tensor parallelism: the ranks of a group share every layer's heads and channels, by torch's DTensor."""

from __future__ import annotations

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    parallelize_module,
)

from aquila2.config import Aquila2Config
from aquila2.model import Aquila2ForCausalLM, Attention

COLUMNS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
ROWS = ("self_attn.o_proj", "mlp.down_proj")


def check_tensor(config: Aquila2Config, size: int) -> None:
    """Refuses a number of ranks that a layer cannot be split over evenly.

    Raises:
        ValueError: It does not divide the key/value heads or the width of the SwiGLU layer.
    """
    if config.num_key_value_heads % size or config.intermediate_size % size:
        raise ValueError(
            f"parallel.tensor must divide the model's {config.num_key_value_heads} key/value heads and its "
            f"intermediate_size of {config.intermediate_size}, got {size}"
        )


def split(model: Aquila2ForCausalLM, mesh: DeviceMesh) -> None:
    """Leaves each rank of a mesh its heads and SwiGLU channels; norms, embedding and output head stay whole.

    Each branch adds the ranks' sums once on its way out, and their gradients once on its way back. The ranks have to
    be given the same samples.

    Args:
        model: The same on all ranks; changed in place.
        mesh: One dimension, whose size `check_tensor` has let through.
    """
    inputs = {
        # Told once that its input is whole, a branch adds its products' gradients for it up before they travel.
        "self_attn": PrepareModuleInput(input_layouts=(Replicate(), None), desired_input_layouts=(Replicate(), None)),
        "mlp": PrepareModuleInput(input_layouts=(Replicate(),), desired_input_layouts=(Replicate(),)),
    }
    plan: dict[str, ParallelStyle] = {
        **inputs,
        **{name: ColwiseParallel() for name in COLUMNS},
        **{name: RowwiseParallel() for name in ROWS},
    }
    for layer in model.model.layers:
        parallelize_module(layer, mesh, plan)
        attention = layer.self_attn
        assert isinstance(attention, Attention)
        attention.heads_q //= mesh.size()
        attention.heads_k //= mesh.size()


def is_held_alike(parameter: Tensor) -> bool:
    """Whether ranks that share layers have the same of a parameter, as of norms, embedding and output head."""
    if not isinstance(parameter, DTensor):
        return True
    names = parameter.device_mesh.mesh_dim_names or ()
    return "tensor" not in names or parameter.placements[names.index("tensor")].is_replicate()
