embedded = ops.aten.linear.default(t, v)  # f32[1, 64]; @common
enter = ops.aten.linear.default(x, w)  # f32[2, 64]; @common
scaled = ops.aten.add.Tensor(enter, embedded)  # f32[2, 64]; @common
silu = ops.aten.silu.default(scaled)  # f32[2, 64]; @common
mixed = ops.aten.add.Tensor(silu, c)  # f32[2, 64]
leave = ops.aten.linear.default(mixed, w)  # f32[2, 64]
return (leave,)
