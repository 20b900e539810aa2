slice_tensor = ops.aten.slice.Tensor(w, 1, 4, 9)  # f32[6, 5, 3, 3] strides (81, 9, 3, 1)
clone_default = ops.aten.clone.default(slice_tensor, memory_format=torch.contiguous_format)  # f32[6, 5, 3, 3]
conv2d_default = ops.aten.conv2d.default(c, clone_default, b, [1, 1], [1, 1])  # f32[2, 6, 8, 8]
slice_tensor_1 = ops.aten.slice.Tensor(w, 1, 0, 4)  # f32[6, 4, 3, 3] strides (81, 9, 3, 1)
clone_default_1 = ops.aten.clone.default(slice_tensor_1, memory_format=torch.contiguous_format)  # f32[6, 4, 3, 3]
conv2d_default_1 = ops.aten.conv2d.default(x, clone_default_1, None, [1, 1], [1, 1])  # f32[2, 6, 8, 8]
conv2d = ops.aten.add.Tensor(conv2d_default, conv2d_default_1)  # f32[2, 6, 8, 8]
return (conv2d,)
