p_layers_0_bias_wide = ops.aten._to_copy.default(p_layers_0_bias, dtype=torch.float32)  # f32[6]; by upcast
p_layers_1_weight_wide = ops.aten._to_copy.default(p_layers_1_weight, dtype=torch.float32)  # f32[10, 8]; by upcast
p_conv_bias_wide = ops.aten._to_copy.default(p_conv_bias, dtype=torch.float32)  # f32[4]; by upcast
p_own_weight_wide = ops.aten._to_copy.default(p_own_weight, dtype=torch.float32)  # f32[8, 8]; by upcast
x_wide = ops.aten._to_copy.default(x, dtype=torch.float32)  # f32[8, 8]; by upcast
silu = ops.aten.silu.default(x_wide)  # f32[8, 8]; by upcast
silu_narrow = ops.aten._to_copy.default(silu, dtype=torch.bfloat16)  # bf16[8, 8]; by upcast, upcast
new_zeros_default = ops.aten.new_zeros.default(p_layers_1_weight_wide, [10])  # f32[10]; by upcast, merge_linears
cat_default_1 = ops.aten.cat.default([p_layers_0_bias_wide, new_zeros_default])  # f32[16]; by upcast, merge_linears
cat_default_2 = ops.aten.cat.default([p_layers_0_weight, p_layers_1_weight])  # bf16[16, 8]; by upcast, merge_linears, narrow_products
merged = ops.graphopt.narrow_linear.default(silu_narrow, cat_default_2, cat_default_1)  # f32[8, 16]; by upcast, merge_linears, narrow_products
split_with_sizes_default = ops.aten.split_with_sizes.default(merged, [6, 10], 1)  # (f32[8, 6] strides (16, 1), f32[8, 10] strides (16, 1)); by upcast, merge_linears
linear = operator.getitem(split_with_sizes_default, 0)  # f32[8, 6] strides (16, 1); by upcast, merge_linears
linear_1 = operator.getitem(split_with_sizes_default, 1)  # f32[8, 10] strides (16, 1); by upcast, merge_linears
_to_copy = ops.aten._to_copy.default(silu, dtype=torch.float32)  # f32[8, 8]; by upcast
_to_copy_1 = ops.aten._to_copy.default(p_own_weight_wide, dtype=torch.float32)  # f32[8, 8]; by upcast
mul = ops.aten.mul.Tensor(_to_copy_1, 3)  # f32[8, 8]; by upcast
linear_2 = ops.aten.linear.default(_to_copy, mul)  # f32[8, 8]; by upcast
tanh = ops.aten.tanh.default(x_wide)  # f32[8, 8]; by upcast
view = ops.aten.view.default(tanh, [1, 2, 4, 8])  # f32[1, 2, 4, 8]; by upcast
view_narrow = ops.aten._to_copy.default(view, dtype=torch.bfloat16)  # bf16[1, 2, 4, 8]; by upcast, upcast
conv2d = ops.graphopt.narrow_conv2d.default(view_narrow, p_conv_weight, p_conv_bias_wide, [2, 2], [1, 1], [1, 1])  # f32[1, 4, 2, 4]; by upcast, narrow_products
mul_1 = ops.aten.mul.Tensor(linear, 2)  # f32[8, 6]; by upcast
mul_2 = ops.aten.mul.Tensor(linear_1, 3)  # f32[8, 10]; by upcast
sin = ops.aten.sin.default(linear)  # f32[8, 6]; by upcast
transpose = ops.aten.transpose.int(sin, -2, -1)  # f32[6, 8] strides (1, 6); by upcast
transpose_narrow = ops.aten._to_copy.default(transpose, dtype=torch.bfloat16)  # bf16[6, 8] strides (1, 6); by upcast, upcast
cos = ops.aten.cos.default(linear_1)  # f32[8, 10]; by upcast
cos_narrow = ops.aten._to_copy.default(cos, dtype=torch.bfloat16)  # bf16[8, 10]; by upcast, upcast
matmul = ops.graphopt.narrow_matmul.default(transpose_narrow, cos_narrow)  # f32[6, 10]; by upcast, narrow_products
narrow = ops.aten._to_copy.default(mul_1, dtype=torch.bfloat16)  # bf16[8, 6]; by upcast
narrow_1 = ops.aten._to_copy.default(mul_2, dtype=torch.bfloat16)  # bf16[8, 10]; by upcast
narrow_2 = ops.aten._to_copy.default(conv2d, dtype=torch.bfloat16)  # bf16[1, 4, 2, 4]; by upcast
narrow_3 = ops.aten._to_copy.default(matmul, dtype=torch.bfloat16)  # bf16[6, 10]; by upcast
return (narrow, narrow_1, linear_2, narrow_2, narrow_3)
