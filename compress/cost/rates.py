"""How fast a machine does what compression asks of it."""

from dataclasses import dataclass, replace

from compress.compressors.work import Work


@dataclass(frozen=True)
class Rates:
    """Of one worker, while all work. The defaults are those of one core of a server's CPU; see `measure_rates`.

    Plans are made from them on every worker, so they must be the same on all.

    Attributes:
        memory: bytes per second of a copy that no cache holds, bytes read plus bytes written.
        products: flop/s of products of a large matrix with a thin one, in float32, beyond the pass over the large one.
        torch_products: flop/s of torch's own products, such as those of the backward pass, beyond theirs.
        orthonormalise: flop/s of orthonormal bases, as `Work` counts them.
        svd: m·n·min(m, n) per second of singular value decompositions.
        call: seconds of an operation on a small tensor.
        matrix: seconds of book-keeping for each parameter.
        collective: seconds of book-keeping for each collective, without what the network takes.
    """

    memory: float = 15e9
    products: float = 130e9
    torch_products: float = 100e9
    orthonormalise: float = 45e9
    svd: float = 1e9
    call: float = 4e-6
    matrix: float = 30e-6
    collective: float = 60e-6

    def slowed(self, times: float) -> "Rates":
        """The same machine where what waits for memory, and book-keeping, takes so many times as long.

        Bases and decompositions are of thin matrices, which lie in caches, and torch's products read each number often.
        """
        return replace(
            self,
            memory=self.memory / times,
            products=self.products / times,
            call=self.call * times,
            matrix=self.matrix * times,
            collective=self.collective * times,
        )

    def seconds(self, work: Work, size: int, itemsize: int, peers: int) -> float:
        """Seconds of a method's arithmetic for a gradient of so many bytes, of numbers of so many bytes each."""
        slower = max(1.0, itemsize / 4)
        flops = work.flops + work.flops_per_worker * peers
        return (
            work.calls * self.call
            + work.passes * size / self.memory
            + slower * (flops / self.products + work.torch_flops / self.torch_products)
            + slower * (work.orthonormalise / self.orthonormalise + work.svd / self.svd)
        )
