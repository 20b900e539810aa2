slice_tensor = ops.aten.slice.Tensor(w, 1, 8, 14)  # f32[5, 6] strides (14, 1)
clone_default = ops.aten.clone.default(slice_tensor, memory_format=torch.contiguous_format)  # f32[5, 6]
linear_default = ops.aten.linear.default(c, clone_default, b)  # f32[4, 5]
slice_tensor_1 = ops.aten.slice.Tensor(w, 1, 0, 8)  # f32[5, 8] strides (14, 1)
clone_default_1 = ops.aten.clone.default(slice_tensor_1, memory_format=torch.contiguous_format)  # f32[5, 8]
linear_default_1 = ops.aten.linear.default(x, clone_default_1)  # f32[4, 5]
linear = ops.aten.add.Tensor(linear_default, linear_default_1)  # f32[4, 5]
return (linear,)
