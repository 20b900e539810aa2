pack = ops.mkldnn._reorder_convolution_weight.default(p_first_weight, [1, 1], [1, 1], [1, 1], 1, [2, 4, 6, 5])  # f32[8, 4, 3, 3]
conv2d = ops.mkldnn._convolution_pointwise.default(x, pack, p_first_bias, [1, 1], [1, 1], [1, 1], 1, 'none', [], '')  # f32[2, 8, 6, 5] strides (240, 1, 40, 8)
clone_default = ops.aten.clone.default(conv2d, memory_format=torch.contiguous_format)  # f32[2, 8, 6, 5]
group_norm = ops.aten.group_norm.default(clone_default, 2, p_norm_weight, p_norm_bias, 1e-05, False)  # f32[2, 8, 6, 5]
silu = ops.aten.silu.default(group_norm)  # f32[2, 8, 6, 5]
view = ops.aten.view.default(silu, [2, 8, 30])  # f32[2, 8, 30]
permute = ops.aten.permute.default(silu, [0, 2, 3, 1])  # f32[2, 6, 5, 8] strides (240, 5, 1, 30)
view_1 = ops.aten.view.default(permute, [2, 30, 8])  # f32[2, 30, 8] strides (240, 1, 30)
pack_1 = ops.mkldnn._reorder_linear_weight.default(p_project_weight, 60)  # f32[8, 8]
linear = ops.mkldnn._linear_pointwise.default(view_1, pack_1, p_project_bias, 'none', [], '')  # f32[2, 30, 8]
view_2 = ops.aten.view.default(linear, [2, 6, 5, 8])  # f32[2, 6, 5, 8]
permute_1 = ops.aten.permute.default(view_2, [0, 3, 1, 2])  # f32[2, 8, 6, 5] strides (240, 1, 40, 8)
clone = ops.aten.clone.default(permute_1, memory_format=torch.contiguous_format)  # f32[2, 8, 6, 5]
add = ops.aten.add.Tensor(silu, clone)  # f32[2, 8, 6, 5]
view_3 = ops.aten.view.default(view, [2, 8, 6, 5])  # f32[2, 8, 6, 5]
add_1 = ops.aten.add.Tensor(add, view_3)  # f32[2, 8, 6, 5]
pack_2 = ops.mkldnn._reorder_convolution_weight.default(p_last_weight, [1, 1], [1, 1], [1, 1], 1, [2, 8, 6, 5])  # f32[4, 8, 3, 3]
conv2d_1 = ops.mkldnn._convolution_pointwise.default(add_1, pack_2, p_last_bias, [1, 1], [1, 1], [1, 1], 1, 'none', [], '')  # f32[2, 4, 6, 5] strides (120, 1, 20, 4)
clone_default_1 = ops.aten.clone.default(conv2d_1, memory_format=torch.contiguous_format)  # f32[2, 4, 6, 5]
return (clone_default_1, add)
