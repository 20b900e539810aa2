sin = ops.aten.sin.default(x)  # f32[2, 3, 4]
view_1 = ops.aten.view.default(sin, [4, 6])  # f32[4, 6]
permute = ops.aten.permute.default(view_1, [1, 0])  # f32[6, 4] strides (1, 6)
return (permute,)
