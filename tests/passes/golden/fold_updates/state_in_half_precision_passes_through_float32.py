_to_copy = ops.aten._to_copy.default(x, dtype=torch.float32)  # f32[2, 4]
_to_copy_1 = ops.aten._to_copy.default(e, dtype=torch.float32)  # f32[2, 4]
add_tensor = ops.aten.add.Tensor(_to_copy, _to_copy_1, alpha=-0.1)  # f32[2, 4]
_to_copy_2 = ops.aten._to_copy.default(add_tensor, dtype=torch.bfloat16)  # bf16[2, 4]
return (_to_copy_2,)
