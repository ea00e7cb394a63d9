"""Functions of torch whose second derivatives need no check at run time."""

from __future__ import annotations

from typing import Final

__all__ = ["STRAIGHT_THROUGH", "VERIFIED"]

# Names of autograd nodes without "Backward" and number. The tests compare the second derivative of each with
# differences. Functions whose formula depends on the values (products with zeros, norms at zero, decompositions) and
# rare ones are left out on purpose: they are compared where they occur.
VERIFIED: Final = frozenset(
    """
    Abs AccumulateGrad AdaptiveAvgPool2D Add Addbmm Addcmul Addmm Addmv Amax AsStrided AvgPool2D
    Baddbmm BinaryCrossEntropyWithLogits Bmm Cat Celu Clamp ClampMax ClampMin Clone ConstantPadNd Convolution CopySlices
    Cos Cumsum Diagonal Div Dot Elu Embedding Erf Exp Expand Expm1 Flip Gather Gelu Glu Hardswish Hardtanh HuberLoss
    Im2Col Index IndexPut IndexSelect LeakyRelu Lerp Log Log1P LogSigmoid LogSoftmax Logaddexp Logsumexp MaskedFill
    Max MaxPool2DWithIndices Maximum Mean Min Minimum Mish Mm MseLoss Mul Mv NativeBatchNorm NativeGroupNorm
    NativeLayerNorm Neg NllLoss Permute PixelShuffle Pow PreluKernel Reciprocal Relu Repeat ReshapeAlias Roll
    Rsqrt SafeSoftmax ScatterAdd Select Sigmoid Silu Sin Slice SmoothL1Loss Softmax Softplus Sort Split
    SplitWithSizes Sqrt Squeeze Stack Sub Sum T Tanh Threshold ToCopy Topk Transpose Tril Triu Unbind
    UnsafeSplit UnsafeSplitWithSizes UnsafeView Unsqueeze UpsampleBilinear2D UpsampleNearest2D Var VarMean View Where
    """.split()  # noqa: SIM905
)

# Their gradient is by definition that of the identity: no derivative of what they compute agrees with it.
STRAIGHT_THROUGH: Final = ("FakeQuantize", "FusedMovingAvgObsFqHelper")
