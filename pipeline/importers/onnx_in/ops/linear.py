"""Matrix products: nn.Linear where the weight is a constant."""

from typing import Any

import torch
from torch import Tensor, fx, nn

from pipeline.importers.onnx_in.context import Op
from pipeline.importers.onnx_in.registry import Result, importer
from pipeline.importers.onnx_in.values import Const


def _linear(op: Op, x: fx.Node, weight: Const, transposed: bool, bias: Const | None) -> fx.Node:
    """x @ weight (+ bias); `transposed`: the weight is (out, in), as nn.Linear holds it."""
    view = "" if transposed else "t"
    parameter = op.builder.parameter(weight, view, None if transposed else weight.tensor.t())
    module = nn.Linear(parameter.shape[1], parameter.shape[0], bias=bias is not None, device="meta")
    tensors: dict[str, nn.Parameter | Tensor] = {"weight": parameter}
    if bias is not None:
        size = parameter.shape[0]
        flat = bias.tensor.reshape(-1).expand(size)
        tensors["bias"] = op.builder.parameter(bias, f"row{size}", flat)
    own = None if bias is None else bias.name or id(bias.tensor)
    key = ("Linear", id(parameter), own)
    return op.module(module, key, weight.name, (x,), tensors)


def _is_row(const: Any, width: int) -> bool:
    """Whether a constant adds the same row to every row of a matrix."""
    if not isinstance(const, Const):
        return False
    shape = tuple(const.tensor.shape)
    if len(shape) > 2:
        return False
    return const.tensor.numel() == 1 or (const.tensor.numel() == width == shape[-1])


@importer("Gemm")
def gemm(op: Op) -> Result:
    """alpha A' B' + beta C."""
    a, b, c = op.value(0), op.value(1), op.maybe(2)
    alpha, beta = op.attr("alpha", 1.0), op.attr("beta", 1.0)
    trans_a, trans_b = bool(op.attr("transA", 0)), bool(op.attr("transB", 0))
    if op.rank(a) != 2 or op.rank(b) != 2:
        raise op.refuse("its inputs must be matrices")
    plain = isinstance(a, fx.Node) and isinstance(b, Const) and b.tensor.is_floating_point()
    if plain and not trans_a and alpha == 1:
        assert isinstance(a, fx.Node) and isinstance(b, Const)
        width = b.tensor.shape[0 if trans_b else 1]
        if c is None or beta == 0:
            return _linear(op, a, b, trans_b, None)
        if beta == 1 and _is_row(c, width):
            assert isinstance(c, Const)
            return _linear(op, a, b, trans_b, c)
    return op.call(general_gemm, a, b, c, alpha, beta, trans_a, trans_b)


def general_gemm(
    a: Tensor, b: Tensor, c: Any, alpha: float, beta: float, trans_a: bool, trans_b: bool
) -> Tensor:
    """alpha A' B' + beta C, the type of A kept for integers."""
    product = torch.mm(a.t() if trans_a else a, b.t() if trans_b else b)
    scaled = product if alpha == 1 else (product * alpha).to(product.dtype)
    if c is None:
        return scaled
    return scaled + (c if beta == 1 else (c * beta).to(product.dtype))


@importer("MatMul")
def matmul(op: Op) -> Result:
    """nn.Linear where the right side is a constant matrix; a bias added after it joins it."""
    a, b = op.value(0), op.value(1)
    if (
        isinstance(a, fx.Node)
        and isinstance(b, Const)
        and b.tensor.ndim == 2
        and b.tensor.is_floating_point()
        and op.rank(a) >= 2
    ):
        return _linear(op, a, b, False, op.builder.bias_after(op.node, b.tensor.shape[1]))
    return op.call(torch.matmul, a, b)
