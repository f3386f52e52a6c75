"""Whether a network is piecewise linear in each layer's weight, told from the operations it used.

Where it is, second derivatives of its output by a layer's weight vanish, so that the layer's block
of the loss's Hessian is its Gauss-Newton block (Botev et al. 2017, section 3).
"""

from collections.abc import Iterable

from mpsearch.network import Network

# Linear in each of what they read, or linear on each side of a kink. A product of two tensors that
# depend on the example is recorded as ``aten.mul(data,data)`` and so is not among them; neither is
# batch normalization by the batch's own statistics, recorded as ``(training)``.
_LINEAR = """
    _adaptive_avg_pool2d _adaptive_avg_pool3d _native_batch_norm_legit_no_training _to_copy
    _unsafe_view add addmm addmv alias as_strided avg_pool1d avg_pool2d avg_pool3d baddbmm bmm cat
    chunk clone col2im constant_pad_nd contiguous convolution copy cudnn_batch_norm cumsum detach
    diagonal div dot dropout embedding expand fill flatten flip gather im2col index index_select
    linear mean mm movedim mul mv narrow native_batch_norm neg permute pixel_shuffle
    pixel_unshuffle reflection_pad1d reflection_pad2d reflection_pad3d repeat replication_pad1d
    replication_pad2d replication_pad3d reshape roll rsub select slice split split_with_sizes
    squeeze stack sub sum t transpose unbind unfold unsafe_split unsqueeze upsample_bilinear2d
    upsample_linear1d upsample_nearest1d upsample_nearest2d upsample_nearest3d
    upsample_trilinear3d view
""".split()
_KINKED = """
    _adaptive_max_pool2d _prelu_kernel abs adaptive_max_pool2d adaptive_max_pool3d amax amin clamp
    clamp_max clamp_min hardtanh leaky_relu max max_pool2d_with_indices max_pool3d_with_indices
    maximum min minimum relu threshold
""".split()
_ALLOWED = frozenset(f"aten.{name}" for name in (*_LINEAR, *_KINKED))


def curved(network: Network | Iterable[str]) -> tuple[str, ...]:
    """The operations that are not piecewise linear, sorted; operations may be given by name."""
    ops = network.ops if isinstance(network, Network) else network
    return tuple(sorted(set(ops) - _ALLOWED))


def piecewise_linear(network: Network | Iterable[str]) -> bool:
    """Whether each output is a piecewise linear function of any one layer's weight."""
    return not curved(network)
