reshape_default = ops.aten.reshape.default(s, [6, 1, 1, 1])  # f32[6, 1, 1, 1]
folded = ops.aten.mul.Tensor(w, reshape_default)  # f32[6, 2, 3, 3]
reshape_default_1 = ops.aten.reshape.default(s, [6])  # f32[6]
folded_1 = ops.aten.mul.Tensor(b, reshape_default_1)  # f32[6]
scaled = ops.aten.conv2d.default(x, folded, folded_1, [1, 1], [1, 1], [1, 1], 2)  # f32[2, 6, 6, 5]
return (scaled,)
