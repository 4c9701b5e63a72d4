"""How many ways a model and its samples are divided, checked against the ranks that there are."""

from __future__ import annotations

from dataclasses import dataclass

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh


@dataclass(frozen=True)
class Layout:
    """The sizes of a mesh of ranks; the last one's neighbours have neighbouring ranks.

    Attributes:
        replicate: Copies of the weights.
        shard: Ranks that share a copy, each with its own samples (FSDP; with several copies HSDP).
        tensor: Ranks that share every layer's heads and channels, and the samples.
        stages: Ranks that have the layers one after the other, and take the same samples.
    """

    replicate: int
    shard: int
    tensor: int
    stages: int

    @property
    def is_divided(self) -> bool:
        """Whether no rank has all weights."""
        return self.shard * self.tensor * self.stages > 1


def layout_for(ranks: int, replicate: int = 0, shard: int = 1, tensor: int = 1, stages: int = 1) -> Layout:
    """The layout that is asked for, with what is left open filled in.

    Args:
        ranks: How many there are.
        replicate: Copies of the weights; 0: as many as there is room for, or one where `shard` is 0 too.
        shard: Ranks that share a copy; 0: as many as there are for each.
        tensor: Ranks that share every layer.
        stages: Ranks that have the layers one after the other.

    Raises:
        ValueError: The sizes do not make up the ranks, or stages are to be divided further.
    """
    if stages > 1 and (shard, tensor) != (1, 1):
        raise ValueError(
            f"parallel.stages goes with parallel.shard and parallel.tensor of 1 only, got {shard} and {tensor}"
        )
    if shard == 0:
        shard = max(1, ranks // ((replicate or 1) * tensor * stages))
    if replicate == 0:
        replicate = max(1, ranks // (shard * tensor * stages))
    if replicate * shard * tensor * stages != ranks:
        raise ValueError(
            f"parallel.replicate x parallel.shard x parallel.tensor x stages must make up the {ranks} ranks of the "
            f"run, got {replicate} x {shard} x {tensor} x {stages}"
        )
    return Layout(replicate, shard, tensor, stages)


def mesh_of(layout: Layout, device: str) -> DeviceMesh:
    """The mesh of a layout, which all ranks have to make; dimensions of size 1 are left out but for one.

    Args:
        layout: Its sizes make up the ranks.
        device: "cpu" or "cuda".
    """
    if layout.stages > 1:
        return init_device_mesh(device, (layout.stages, layout.replicate), mesh_dim_names=("stage", "replicate"))
    sizes = {"replicate": layout.replicate, "shard": layout.shard, "tensor": layout.tensor}
    kept = {name: size for name, size in sizes.items() if size > 1 or name == "shard"}
    return init_device_mesh(device, tuple(kept.values()), mesh_dim_names=tuple(kept))
