"""Operations on values that rules are put together from."""

from compress.bounds.parts import Parts
from compress.bounds.products import Products


class Operations(Products, Parts):
    """All operations on values: sums, products, rows, parts and wholes; one for each traced graph."""
