norm = ops.aten.rms_norm.default(x, [8])  # f32[4, 8]
_to_copy_default = ops.aten._to_copy.default(w, dtype=torch.float64)  # f64[6, 8]
_to_copy_default_1 = ops.aten._to_copy.default(s, dtype=torch.float64)  # f64[8]
einsum_default = ops.aten.einsum.default('om...,m->o', [_to_copy_default, _to_copy_default_1])  # f64[6]
_to_copy_default_2 = ops.aten._to_copy.default(b, dtype=torch.float64)  # f64[6]
add_tensor = ops.aten.add.Tensor(einsum_default, _to_copy_default_2)  # f64[6]
_to_copy_default_3 = ops.aten._to_copy.default(add_tensor, dtype=torch.float32, memory_format=torch.contiguous_format)  # f32[6]
layer = ops.aten.linear.default(norm, w, _to_copy_default_3)  # f32[4, 6]
return (layer,)
