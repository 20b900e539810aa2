mul_tensor = ops.aten.mul.Tensor(x, 1.107142857142857)  # f32[2, 4, 6]
add_tensor = ops.aten.add.Tensor(mul_tensor, u, alpha=1.9732142857142851)  # f32[2, 4, 6]
add_tensor_1 = ops.aten.add.Tensor(add_tensor, c, alpha=-2.2767857142857135)  # f32[2, 4, 6]
return (add_tensor_1,)
