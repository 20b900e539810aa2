folded = ops.aten.mul.Tensor(w, s)  # f32[6, 4, 3, 3]
layer = ops.aten.conv2d.default(x, folded, b, [1, 1], [1, 1], [1, 1], 1)  # f32[2, 6, 6, 5]
return (layer,)
