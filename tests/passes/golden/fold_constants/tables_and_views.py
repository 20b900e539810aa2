arange = ops.aten.arange.start(0, 4, dtype=torch.float32)  # f32[4]; @weights
exp = ops.aten.exp.default(arange)  # f32[4]; @weights
transpose = ops.aten.transpose.int(w, 0, 1)  # f32[4, 3] strides (1, 4); @weights
mul = ops.aten.mul.Tensor(x, exp)  # f32[2, 4]
matmul = ops.aten.matmul.default(mul, transpose)  # f32[2, 3]
return (matmul,)
