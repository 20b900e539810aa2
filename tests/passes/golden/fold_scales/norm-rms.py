rms_norm = ops.aten.rms_norm.default(x, [8], None, None)  # f32[2, 5, 8]
folded = ops.aten.mul.Tensor(p_query_weight, p_norm_weight)  # f32[8, 8]
folded_1 = ops.aten.mul.Tensor(p_key_weight, p_norm_weight)  # f32[8, 8]
folded_2 = ops.aten.mul.Tensor(p_value_weight, p_norm_weight)  # f32[8, 8]
linear = ops.aten.linear.default(rms_norm, folded)  # f32[2, 5, 8]
linear_1 = ops.aten.linear.default(rms_norm, folded_1, p_key_bias)  # f32[2, 5, 8]
linear_2 = ops.aten.linear.default(rms_norm, folded_2, p_value_bias)  # f32[2, 5, 8]
scaled_dot_product_attention = ops.aten.scaled_dot_product_attention.default(linear, linear_1, linear_2)  # f32[2, 5, 8]
return (scaled_dot_product_attention,)
