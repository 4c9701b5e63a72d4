# The instantiations of the sm_80 attention kernels.
flagattn_instantiate(forward_instance.cu.in ELEMENT=BFloat16 HEAD_DIM=64)
flagattn_instantiate(forward_instance.cu.in ELEMENT=BFloat16 HEAD_DIM=128)
flagattn_instantiate(forward_instance.cu.in ELEMENT=Float16 HEAD_DIM=64)
flagattn_instantiate(forward_instance.cu.in ELEMENT=Float16 HEAD_DIM=128)
