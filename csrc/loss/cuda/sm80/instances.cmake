# The instantiations of the sm_80 cross-entropy kernels: forward and backward of each dtype.
flagattn_instantiate(loss_instance.cu.in ELEMENT=float)
flagattn_instantiate(loss_instance.cu.in ELEMENT=BFloat16)
flagattn_instantiate(loss_instance.cu.in ELEMENT=Float16)
