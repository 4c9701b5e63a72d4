# The instantiations of the sm_80 rotary kernel: one per dtype, for either layout of pairs.
flagattn_instantiate(rotary_instance.cu.in ELEMENT=float)
flagattn_instantiate(rotary_instance.cu.in ELEMENT=BFloat16)
flagattn_instantiate(rotary_instance.cu.in ELEMENT=Float16)
