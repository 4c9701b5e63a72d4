"""Weights, gradients and moments divided over ranks by torch's FSDP2, one unit per decoder layer."""

from __future__ import annotations

from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

from aquila2.model import Aquila2ForCausalLM


def shard(model: Aquila2ForCausalLM, mesh: DeviceMesh) -> None:
    """Leaves each rank of a mesh its part of every weight; a layer's are gathered while it is at work.

    Gradients are summed over the ranks, not averaged. Every rank has to go through the model as often as the others.

    Args:
        model: The same on all ranks; changed in place.
        mesh: One dimension, or copies times shards (HSDP).
    """
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    # Without it the outermost weights stay whole after a pass that has no backward one, and are other parameters then.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    register_fsdp_forward_method(model, "loss")
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no sum with a factor


class ShardedGradients:
    """Tells FSDP when a step's last backward pass comes: copies of the weights are summed over then, and only then.

    Args:
        model: One that `shard` has divided.
    """

    def __init__(self, model: Aquila2ForCausalLM) -> None:
        assert isinstance(model, FSDPModule)
        self._model: FSDPModule = model
        self._model.set_requires_all_reduce(False)

    def begin(self) -> None:
        """Announces that the next backward pass is the step's last."""
        self._model.set_requires_all_reduce(True)

    def finish(self) -> None:
        """Ends the step, whose gradients are summed."""
        self._model.set_requires_all_reduce(False)
