reshape_default = ops.aten.reshape.default(q, [1, 3, 6, 4])  # f32[1, 3, 6, 4]
reshape_default_1 = ops.aten.reshape.default(k, [1, 3, 5, 4])  # f32[1, 3, 5, 4]
reshape_default_2 = ops.aten.reshape.default(v, [1, 3, 5, 4])  # f32[1, 3, 5, 4]
reshape_default_3 = ops.aten.reshape.default(mask, [1, 3, 6, 5])  # f32[1, 3, 6, 5]
attention = ops.aten.scaled_dot_product_attention.default(reshape_default, reshape_default_1, reshape_default_2, reshape_default_3, scale=0.5)  # f32[1, 3, 6, 4]
bmm = ops.aten.reshape.default(attention, [3, 6, 4])  # f32[3, 6, 4]
return (bmm,)
