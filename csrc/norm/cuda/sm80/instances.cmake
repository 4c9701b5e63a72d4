# The instantiations of the sm_80 RMSNorm kernels: rows in registers, wide rows and the backward of each dtype.
flagattn_instantiate(norm_instance.cu.in ELEMENT=float)
flagattn_instantiate(norm_instance.cu.in ELEMENT=BFloat16)
flagattn_instantiate(norm_instance.cu.in ELEMENT=Float16)
