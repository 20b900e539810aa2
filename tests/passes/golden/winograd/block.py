winograd = ops.graphopt.winograd_conv2d.default(x, p_first_weight, p_first_bias, [1, 1], 4)  # f32[2, 64, 16, 16]; by winograd
group_norm = ops.aten.group_norm.default(winograd, 4, p_norm_weight, p_norm_bias, 1e-05, False)  # f32[2, 64, 16, 16]
silu = ops.aten.silu.default(group_norm)  # f32[2, 64, 16, 16]
winograd_1 = ops.graphopt.winograd_conv2d.default(silu, p_second_weight, None, [1, 1], 4)  # f32[2, 64, 16, 16]; by winograd
add = ops.aten.add.Tensor(winograd, winograd_1)  # f32[2, 64, 16, 16]
conv2d_2 = ops.aten.conv2d.default(add, p_down_weight, p_down_bias, [2, 2], [1, 1])  # f32[2, 8, 8, 8]
return (conv2d_2,)
