slice_tensor = ops.aten.slice.Tensor(w, 1, 17, 18)  # f32[5, 1] strides (20, 1)
clone_default = ops.aten.clone.default(slice_tensor, memory_format=torch.contiguous_format)  # f32[5, 1]
linear_default = ops.aten.linear.default(w_part, clone_default, b)  # f32[4, 5]
slice_tensor_1 = ops.aten.slice.Tensor(w, 1, 8, 14)  # f32[5, 6] strides (20, 1)
clone_default_1 = ops.aten.clone.default(slice_tensor_1, memory_format=torch.contiguous_format)  # f32[5, 6]
linear_default_1 = ops.aten.linear.default(c, clone_default_1)  # f32[4, 5]
slice_tensor_2 = ops.aten.slice.Tensor(w, 1, 14, 17)  # f32[5, 3] strides (20, 1)
clone_default_2 = ops.aten.clone.default(slice_tensor_2, memory_format=torch.contiguous_format)  # f32[5, 3]
linear_default_2 = ops.aten.linear.default(t, clone_default_2)  # f32[4, 5]
slice_tensor_3 = ops.aten.slice.Tensor(w, 1, 0, 8)  # f32[5, 8] strides (20, 1)
slice_tensor_4 = ops.aten.slice.Tensor(w, 1, 18, 20)  # f32[5, 2] strides (20, 1)
cat_default = ops.aten.cat.default([x, y], 1)  # f32[4, 10]
cat_default_1 = ops.aten.cat.default([slice_tensor_3, slice_tensor_4], 1)  # f32[5, 10]
linear_default_3 = ops.aten.linear.default(cat_default, cat_default_1)  # f32[4, 5]
add_tensor = ops.aten.add.Tensor(linear_default, linear_default_1)  # f32[4, 5]
add_tensor_1 = ops.aten.add.Tensor(add_tensor, linear_default_2)  # f32[4, 5]
linear = ops.aten.add.Tensor(add_tensor_1, linear_default_3)  # f32[4, 5]
return (linear,)
