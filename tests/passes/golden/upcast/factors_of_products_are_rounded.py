p_first_weight_wide = ops.aten._to_copy.default(p_first_weight, dtype=torch.float32)  # f32[8, 8]; by upcast
p_first_bias_wide = ops.aten._to_copy.default(p_first_bias, dtype=torch.float32)  # f32[8]; by upcast
p_second_weight_wide = ops.aten._to_copy.default(p_second_weight, dtype=torch.float32)  # f32[8, 8]; by upcast
p_conv_weight_wide = ops.aten._to_copy.default(p_conv_weight, dtype=torch.float32)  # f32[3, 2, 3, 3]; by upcast
p_conv_bias_wide = ops.aten._to_copy.default(p_conv_bias, dtype=torch.float32)  # f32[3]; by upcast
x_wide = ops.aten._to_copy.default(x, dtype=torch.float32)  # f32[8, 8]; by upcast
silu = ops.aten.silu.default(x_wide)  # f32[8, 8]; by upcast
silu_narrow = ops.aten._to_copy.default(silu, dtype=torch.bfloat16)  # bf16[8, 8]; by upcast, upcast
silu_rounded = ops.aten._to_copy.default(silu_narrow, dtype=torch.float32)  # f32[8, 8]; by upcast, upcast
linear = ops.aten.linear.default(silu_rounded, p_first_weight_wide, p_first_bias_wide)  # f32[8, 8]; by upcast
mul = ops.aten.mul.Tensor(p_second_weight_wide, 0.5)  # f32[8, 8]; by upcast
mul_narrow = ops.aten._to_copy.default(mul, dtype=torch.bfloat16)  # bf16[8, 8]; by upcast, upcast
mul_rounded = ops.aten._to_copy.default(mul_narrow, dtype=torch.float32)  # f32[8, 8]; by upcast, upcast
linear_1 = ops.aten.linear.default(silu_rounded, mul_rounded)  # f32[8, 8]; by upcast
add = ops.aten.add.Tensor(linear, linear_1)  # f32[8, 8]; by upcast
_to_copy = ops.aten._to_copy.default(silu, dtype=torch.float32)  # f32[8, 8]; by upcast
_to_copy_1 = ops.aten._to_copy.default(p_second_weight_wide, dtype=torch.float32)  # f32[8, 8]; by upcast
matmul = ops.aten.matmul.default(_to_copy, _to_copy_1)  # f32[8, 8]; by upcast
tanh = ops.aten.tanh.default(x_wide)  # f32[8, 8]; by upcast
view = ops.aten.view.default(tanh, [1, 2, 4, 8])  # f32[1, 2, 4, 8]; by upcast
view_narrow = ops.aten._to_copy.default(view, dtype=torch.bfloat16)  # bf16[1, 2, 4, 8]; by upcast, upcast
view_rounded = ops.aten._to_copy.default(view_narrow, dtype=torch.float32)  # f32[1, 2, 4, 8]; by upcast, upcast
conv2d = ops.aten.conv2d.default(view_rounded, p_conv_weight_wide, p_conv_bias_wide)  # f32[1, 3, 2, 6]; by upcast
narrow = ops.aten._to_copy.default(add, dtype=torch.bfloat16)  # bf16[8, 8]; by upcast
narrow_1 = ops.aten._to_copy.default(conv2d, dtype=torch.bfloat16)  # bf16[1, 3, 2, 6]; by upcast
return (narrow, matmul, narrow_1)
