view = ops.aten.view.default(prompt, [10, 8])  # f32[10, 8]; @request
key = ops.aten.linear.default(view, w)  # f32[10, 8]; @request
key_view = ops.aten.view.default(key, [2, 5, 8])  # f32[2, 5, 8]; @request
value = ops.aten.linear.default(view, wide)  # f32[10, 5]; @request
transpose = ops.aten.transpose.int(key_view, 1, 2)  # f32[2, 8, 5] strides (40, 1, 8); @request
scores = ops.aten.matmul.default(x, transpose)  # f32[2, 10, 5]
total = ops.aten.sum.default(value)  # f32[]; @request
mul = ops.aten.mul.Tensor(value, 2)  # f32[10, 5]; @request
cos = ops.aten.cos.default(mul)  # f32[10, 5]; @request
add = ops.aten.add.Tensor(scores, total)  # f32[2, 10, 5]
mul_1 = ops.aten.mul.Tensor(add, cos)  # f32[2, 10, 5]
return (mul_1,)
