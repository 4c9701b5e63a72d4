# The instantiations of the sm_80 SwiGLU kernels: forward and backward of each dtype.
flagattn_instantiate(activation_instance.cu.in ELEMENT=float)
flagattn_instantiate(activation_instance.cu.in ELEMENT=BFloat16)
flagattn_instantiate(activation_instance.cu.in ELEMENT=Float16)
