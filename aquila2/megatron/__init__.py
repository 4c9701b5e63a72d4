"""Importing weights that Megatron-LM or FlagScale saved in tensor- and pipeline-parallel parts."""

from aquila2.megatron.importing import from_megatron

__all__ = ["from_megatron"]
