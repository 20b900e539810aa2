add_tensor = ops.aten.add.Tensor(x, y)  # f32[2, 6, 8]
add_tensor_1 = ops.aten.add.Tensor(add_tensor, t)  # f32[2, 6, 8]
add_tensor_2 = ops.aten.add.Tensor(w, v)  # f32[1, 8]
add_tensor_3 = ops.aten.add.Tensor(c, add_tensor_2)  # f32[2, 1, 8]
add_4 = ops.aten.add.Tensor(add_tensor_1, add_tensor_3)  # f32[2, 6, 8]
return (add_4,)
