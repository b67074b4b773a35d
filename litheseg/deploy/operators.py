"""The operators that archives of `torch.export` may ask for; whatever is not listed is refused.

All of them compute tensors from tensors. Others read and write files, print, draw at random or set up memory. This is
a list of what is allowed, since every PyTorch release adds operators.

Usage:
    >>> "conv2d.default" in OPERATORS, "save.default" in OPERATORS
    (True, False)
"""

from __future__ import annotations

__all__ = ["OPERATORS"]

_OURS = """
    _assert_tensor_metadata.default adaptive_avg_pool2d.default add.Tensor add_.Tensor argmax.default avg_pool2d.default
    batch_norm.default cat.default conv2d.default conv_transpose2d.input flatten.using_ints hardsigmoid.default
    hardswish_.default hardtanh_.default max_pool2d.default mean.dim mul.Tensor pad.default permute.default relu.default
    relu_.default sigmoid.default slice.Tensor sym_size.int to.dtype transpose.int unflatten.int upsample_bilinear2d.vec
"""  # what the registered architectures ask for, at every output and layout

_OTHERS = """
    abs.default adaptive_max_pool2d.default alias.default amax.default amin.default avg_pool1d.default bmm.default
    channel_shuffle.default chunk.default clamp.default clamp_.default clamp_min.default clone.default
    constant_pad_nd.default contiguous.default conv1d.default conv2d.padding detach.default detach_.default div.Tensor
    div_.Tensor dropout.default dropout_.default einsum.default elu.default elu_.default exp.default expand.default
    expand_as.default gelu.default gelu_.default glu.default group_norm.default hardsigmoid_.default hardswish.default
    hardtanh.default instance_norm.default layer_norm.default leaky_relu.default leaky_relu_.default
    lift_fresh_copy.default linear.default log.default matmul.default max.dim maximum.default mean.default min.dim
    minimum.default mish.default mish_.default movedim.int mul.Scalar mul_.Tensor narrow.default neg.default
    numpy_T.default pixel_shuffle.default pixel_unshuffle.default pow.Tensor_Scalar prelu.default reciprocal.default
    reflection_pad2d.default relu6.default relu6_.default repeat.default replication_pad2d.default reshape.default
    roll.default rsqrt.default rsub.Scalar scaled_dot_product_attention.default select.int selu.default sigmoid_.default
    silu.default silu_.default softmax.int softplus.default split.Tensor split_with_sizes.default sqrt.default
    squeeze.default squeeze.dim stack.default std.correction sub.Tensor sub_.Tensor sum.dim_IntList t.default
    tanh.default tanh_.default to.dtype_layout type_as.default unbind.int unsqueeze.default upsample_bicubic2d.vec
    upsample_nearest2d.vec var.correction var_mean.correction view.default where.self
"""  # what networks of the same kind ask for, timm's among them

OPERATORS = frozenset((_OURS + _OTHERS).split())
"""Names within ``torch.ops.aten``, with their overloads."""
