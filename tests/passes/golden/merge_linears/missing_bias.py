cat_default = ops.aten.cat.default([p_query_weight, p_key_weight, p_value_weight])  # f32[24, 8]
new_zeros_default = ops.aten.new_zeros.default(p_key_weight, [8])  # f32[8]
cat_default_1 = ops.aten.cat.default([p_query_bias, new_zeros_default, p_value_bias])  # f32[24]
merged = ops.aten.linear.default(x, cat_default, cat_default_1)  # f32[2, 5, 24]
split_with_sizes_default = ops.aten.split_with_sizes.default(merged, [8, 8, 8], 2)  # (f32[2, 5, 8] strides (120, 24, 1), f32[2, 5, 8] strides (120, 24, 1), f32[2, 5, 8] strides (120, 24, 1))
linear = operator.getitem(split_with_sizes_default, 0)  # f32[2, 5, 8] strides (120, 24, 1)
linear_1 = operator.getitem(split_with_sizes_default, 1)  # f32[2, 5, 8] strides (120, 24, 1)
linear_2 = operator.getitem(split_with_sizes_default, 2)  # f32[2, 5, 8] strides (120, 24, 1)
view = ops.aten.view.default(linear, [2, 5, 2, 4])  # f32[2, 5, 2, 4] strides (120, 24, 4, 1)
transpose = ops.aten.transpose.int(view, 1, 2)  # f32[2, 2, 5, 4] strides (120, 4, 24, 1)
view_1 = ops.aten.view.default(linear_1, [2, 5, 2, 4])  # f32[2, 5, 2, 4] strides (120, 24, 4, 1)
transpose_1 = ops.aten.transpose.int(view_1, 1, 2)  # f32[2, 2, 5, 4] strides (120, 4, 24, 1)
view_2 = ops.aten.view.default(linear_2, [2, 5, 2, 4])  # f32[2, 5, 2, 4] strides (120, 24, 4, 1)
transpose_2 = ops.aten.transpose.int(view_2, 1, 2)  # f32[2, 2, 5, 4] strides (120, 4, 24, 1)
scaled_dot_product_attention = ops.aten.scaled_dot_product_attention.default(transpose, transpose_1, transpose_2)  # f32[2, 2, 5, 4] strides (40, 4, 8, 1)
transpose_3 = ops.aten.transpose.int(scaled_dot_product_attention, 1, 2)  # f32[2, 5, 2, 4]
view_3 = ops.aten.view.default(transpose_3, [2, 5, 8])  # f32[2, 5, 8]
return (view_3,)
