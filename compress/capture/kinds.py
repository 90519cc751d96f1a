"""The kinds of layers that can be captured."""

from types import MethodType

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from compress.capture.convolution import CONVOLUTION
from compress.capture.embedding import EMBEDDING
from compress.capture.forward import CapturedForward
from compress.capture.kind import Kind
from compress.capture.linear import LINEAR
from compress.capture.recurrent import RECURRENT

KINDS: dict[type[nn.Module], Kind] = {
    nn.Linear: LINEAR,
    nn.Conv1d: CONVOLUTION,
    nn.Conv2d: CONVOLUTION,
    nn.Conv3d: CONVOLUTION,
    nn.RNN: RECURRENT,
    nn.GRU: RECURRENT,
    nn.LSTM: RECURRENT,
    nn.Embedding: EMBEDDING,
}
"""By the class whose forward is known."""


def kind_of(module: nn.Module) -> Kind | None:
    """How a layer is captured; None where its forward is another than torch's.

    Attention reads the weight of its output map itself, and calls no forward.
    """
    if isinstance(module, NonDynamicallyQuantizableLinear):
        return None
    own = module.__dict__.get("forward")
    restored = isinstance(own, MethodType) and own.__func__ is type(module).forward
    if own is not None and not restored and not isinstance(own, CapturedForward):
        return None
    return next(
        (kind for known, kind in KINDS.items() if isinstance(module, known) and type(module).forward is known.forward),
        None,
    )
