"""Products of two tensors that sum over some of their dimensions, as torch's operators write them: by letters."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ...ir import products
from ...ir.program import bind, val

aten = torch.ops.aten

BROADCAST = "."  # a dimension of size 1 whose only element all share


@dataclass(frozen=True)
class Contraction:
    """``out = Σ left · right``, in letters as in an einsum.

    Attributes
    ----------
    left_dims, right_dims, out : a letter per dimension, or `BROADCAST`.
    sizes : by letter.
    bias : is added, broadcast to the result.
    """

    left: fx.Node
    right: fx.Node
    left_dims: str
    right_dims: str
    out: str
    sizes: dict[str, int]
    bias: fx.Node | None = None

    @property
    def batch_letters(self) -> str:
        """Of dimensions that both factors and the result have."""
        return "".join(letter for letter in self.out if letter in self.left_dims and letter in self.right_dims)

    @property
    def row_letters(self) -> str:
        """Of dimensions that the left factor and the result have."""
        return "".join(letter for letter in self.out if letter not in self.right_dims)

    @property
    def column_letters(self) -> str:
        """Of dimensions that the right factor and the result have."""
        return "".join(letter for letter in self.out if letter not in self.left_dims)

    @property
    def term_letters(self) -> str:
        """Of dimensions that are summed over."""
        return "".join(letter for letter in self.left_dims if letter not in (*self.out, BROADCAST))

    @property
    def batch(self) -> int:
        return self.size(self.batch_letters)

    @property
    def rows(self) -> int:
        return self.size(self.row_letters)

    @property
    def columns(self) -> int:
        return self.size(self.column_letters)

    @property
    def terms(self) -> int:
        return self.size(self.term_letters)

    def size(self, letters: str) -> int:
        """How many elements some dimensions have together."""
        return math.prod(self.sizes[letter] for letter in letters)


def contraction(node: fx.Node) -> Contraction | None:
    """What a node contracts, if it does nothing else."""
    bound = bind(node)
    if node.target in (aten.linear.default, products.linear):
        rank = val(bound["input"]).ndim
        rows = string.ascii_lowercase[: rank - 1]
        return _contraction(bound["input"], bound["weight"], f"{rows}z", "yz", f"{rows}y", bound["bias"])
    if node.target is aten.einsum.default:
        return _einsum(bound)
    if node.target in (aten.addmm.default, aten.baddbmm.default):
        if (bound["beta"], bound["alpha"]) != (1, 1):
            return None
        one, other = ("mat1", "mat2") if "mat1" in bound else ("batch1", "batch2")
        return _matmul(bound[one], bound[other], bound["self"])
    return _matmul(bound["self"], bound["mat2" if "mat2" in bound else "other"])


def _matmul(left: fx.Node, right: fx.Node, bias: fx.Node | None = None) -> Contraction | None:
    one, other = val(left).shape, val(right).shape
    if not one or not other:
        return None
    left_dims = ("x" if len(one) > 1 else "") + "z"
    right_dims = "z" + ("y" if len(other) > 1 else "")
    leading = one[:-2], other[:-2]
    rank = max(map(len, leading))
    letters = string.ascii_lowercase[:rank]
    whole = torch.broadcast_shapes(*leading)
    dims = [
        "".join(
            letter if size == full else BROADCAST
            for letter, size, full in zip(letters[rank - len(sizes) :], sizes, whole[rank - len(sizes) :], strict=True)
        )
        for sizes in leading
    ]
    out = letters + left_dims[:-1] + right_dims[1:]
    return _contraction(left, right, dims[0] + left_dims, dims[1] + right_dims, out, bias)


def _einsum(bound: dict[str, Any]) -> Contraction | None:
    before, arrow, out = bound["equation"].replace(" ", "").partition("->")
    operands = before.split(",")
    if not arrow or len(operands) != 2 or not all(map(str.isalpha, operands)) or not (out.isalpha() or not out):
        return None
    if any(len(set(dims)) != len(dims) for dims in (*operands, out)):
        return None
    (left, right), (left_dims, right_dims) = bound["tensors"], operands
    return _contraction(left, right, left_dims, right_dims, out)


def _contraction(
    left: fx.Node, right: fx.Node, left_dims: str, right_dims: str, out: str, bias: fx.Node | None = None
) -> Contraction | None:
    sizes: dict[str, int] = {}
    for node, dims in ((left, left_dims), (right, right_dims)):
        for letter, size in zip(dims, _shape(node), strict=True):
            if letter != BROADCAST and sizes.setdefault(letter, size) != size:
                return None
    alone = set(left_dims) ^ set(right_dims)
    if any(letter not in out for letter in alone - {BROADCAST}) or any(letter not in sizes for letter in out):
        return None
    return Contraction(left, right, left_dims, right_dims, out, sizes, bias)


def _shape(node: fx.Node) -> Sequence[int]:
    shape: Sequence[int] = val(node).shape
    return shape
