add = ops.aten.add.Tensor(x, x)  # f32[2, 6, 4]
text = ops.aten.slice.Tensor(add, 1, 0, 2)  # f32[2, 2, 4] strides (24, 4, 1)
silu = ops.aten.silu.default(add)  # f32[2, 6, 4]
sin = ops.aten.sin.default(text)  # f32[2, 2, 4]
return (silu, sin)
