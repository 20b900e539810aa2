mul_tensor = ops.aten.mul.Tensor(x, 1.1428571428571428)  # f32[2, 4, 6]
add_tensor = ops.aten.add.Tensor(mul_tensor, u, alpha=3.7142857142857144)  # f32[2, 4, 6]
add_tensor_1 = ops.aten.add.Tensor(add_tensor, c, alpha=-4.285714285714286)  # f32[2, 4, 6]
other = ops.aten.lerp.Scalar(add_tensor_1, x, 0.25)  # f32[2, 4, 6]
return (other, add_tensor_1)
