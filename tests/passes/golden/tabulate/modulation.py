arange = ops.aten.arange.start(0, 4, dtype=torch.float32)  # f32[4]; @schedule
angle = ops.aten.mul.Tensor(t, arange)  # f32[4]; @schedule
sin = ops.aten.sin.default(angle)  # f32[4]; @schedule
linear = ops.aten.linear.default(sin, w)  # f32[8]; @schedule
mixed = ops.aten.add.Tensor(linear, c)  # f32[2, 8]; @request_schedule
silu = ops.aten.silu.default(mixed)  # f32[2, 8]; @request_schedule
mul = ops.aten.mul.Tensor(x, linear)  # f32[2, 8]
add = ops.aten.add.Tensor(mul, silu)  # f32[2, 8]
return (add,)
