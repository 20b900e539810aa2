embedded = ops.aten.linear.default(t, w)  # f32[1, 8]
expand_default = ops.aten.expand.default(embedded, [3, 8])  # f32[3, 8] strides (0, 1)
add = ops.aten.add.Tensor(x, expand_default)  # f32[3, 8]
repeated = ops.aten.cat.default([add, add], 0)  # f32[6, 8]
mul = ops.aten.mul.Tensor(repeated, c)  # f32[6, 8]
return (mul,)
