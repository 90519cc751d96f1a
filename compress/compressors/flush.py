"""What is done with a residual that the method now planned does not carry on."""

from compress.compressors.base import AllReduceMean, Compressor, Matrix, Rounds
from compress.compressors.error_feedback import add_scaled


def flush(matrix: Matrix, compressor: Compressor) -> Rounds:
    """Run the method on the gradient alone, send the residual dense beside it, and forget it: once."""
    residual = matrix.memory["residual"]
    owed = add_scaled(residual.new_zeros(residual.shape), residual, matrix.scale)
    mean = yield AllReduceMean(owed, in_place=True)
    delivered = yield from compressor.rounds(matrix)
    name = matrix.info.name
    if bool(matrix.finite):
        del matrix.memory["residual"]
    return delivered | {name: delivered[name].view_as(mean) + mean.to(delivered[name].dtype)}
