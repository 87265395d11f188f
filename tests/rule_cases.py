"""For every op with a rule: a program in which channels flow, and one in which they must stay.

What each comes to is written by hand, in the letters of `rule_harness`: first the eight channels
that enter, then a dimension of the result.
"""

from typing import Any

import torch
import torchvision  # noqa: F401 - registers its ops
from rule_harness import Case, Program

A = torch.ops.aten
V = torch.ops.torchvision
ALL, NONE = "abcdefgh", "........"
UNKNOWN = {"dead": None}  # the value of a removed channel is not known: no sum may read it

FLOWS: dict[Any, Case] = {}
STAYS: dict[Any, Case] = {}


def both(op: Any, flows: Case, stays: Case) -> None:
    FLOWS[op], STAYS[op] = flows, stays


def summed(program: Program) -> Program:
    """What comes out is summed over channels, which only zeros may leave."""

    def run(h, x):
        out = program(h, x)
        out = out[0] if isinstance(out, tuple | list) else out
        h(A.sum.dim_IntList, out, [1])

    return run


def passes(op: Any, program: Program, **how: Any) -> None:
    """Each channel alone: flows as it is, and stays where its unknown value is summed."""
    both(op, Case(program, ALL, ALL, **how), Case(summed(program), NONE, options=UNKNOWN))


# Elementwise ----------------------------------------------------------------------------------
for _op, _rest in {
    A.hardswish: (), A.hardswish_: (), A.hardtanh: (), A.hardtanh_: (), A.hardsigmoid_: (),
    A.relu6_: (), A.elu_: (), A.leaky_relu_: (), A.celu_: (), A.selu_: (), A.softplus: (),
    A.threshold_: (0.1, 0.0), A.clamp_: (-1, 1), A.nan_to_num_: (), A.mish_: (),
    A.clone: (), A.detach: (), A.alias: (), A.contiguous: (), A.positive: (),
    A.dropout: (0.5, False),
}.items():  # fmt: skip
    passes(_op, lambda h, x, op=_op, rest=_rest: h(op.default, x, *rest))
passes(A.log_sigmoid_forward, lambda h, x: h(A.log_sigmoid_forward.default, x)[0])
passes(A._to_copy, lambda h, x: h(A._to_copy.default, x, dtype=torch.float64))
passes(A.rrelu_with_noise, lambda h, x: h(
    A.rrelu_with_noise.default, x, h(A.empty_like.default, x), 0.1, 0.3, False))  # fmt: skip
both(
    A.view_as_real,
    Case(lambda h, x: h(A.view_as_real.default, x), ALL, ALL, options={"dtype": torch.complex64}),
    Case(
        summed(lambda h, x: h(A.view_as_real.default, x)), NONE,
        options={"dtype": torch.complex64, **UNKNOWN},
    ),
)  # fmt: skip
for _op in (A.prelu, A._prelu_kernel):
    both(
        _op,
        Case(lambda h, x, op=_op: h(op.default, x, torch.rand(1)), ALL, ALL),
        Case(lambda h, x, op=_op: h(op.default, x, torch.rand(8)), NONE, shape=(2, 8)),
    )
for _op in (A.masked_fill, A.masked_fill_):
    both(
        _op,
        Case(lambda h, x, op=_op: h(op.Scalar, x, torch.rand(4, 4) > 0.5, 0.0), ALL, ALL),
        Case(lambda h, x, op=_op: h(op.Scalar, x, torch.rand(8, 1, 1) > 0.5, 0.0), NONE),
    )
for _op in (A.copy, A.copy_):
    both(
        _op,
        Case(lambda h, x, op=_op: h(op.default, h.activation((2, 8, 4, 4)), x), ALL, ALL),
        Case(lambda h, x, op=_op: h(op.default, torch.rand(2, 8, 4, 4), x), NONE),
    )
both(
    A.glu,
    Case(lambda h, x: h(A.glu.default, x, 1), "abcdabcd", "abcd"),
    Case(summed(lambda h, x: h(A.glu.default, x, 1)), NONE, options=UNKNOWN),
)

# Tensors that the forward makes: constants have positions that may all go, others none ------------
for _op, _make in {
    A.zeros: lambda h, _: h(A.zeros.default, [8, 1, 1]),
    A.ones: lambda h, _: h(A.ones.default, [8, 1, 1]),
    A.full: lambda h, _: h(A.full.default, [8, 1, 1], 2.0),
    A.empty: lambda h, _: h(A.empty.memory_format, [8, 1, 1]),
    A.zeros_like: lambda h, _: h(A.zeros_like.default, torch.rand(8, 1, 1)),
    A.ones_like: lambda h, _: h(A.ones_like.default, torch.rand(8, 1, 1)),
    A.full_like: lambda h, _: h(A.full_like.default, torch.rand(8, 1, 1), 2.0),
    A.empty_like: lambda h, _: h(A.empty_like.default, torch.rand(8, 1, 1)),
    A.new_zeros: lambda h, _: h(A.new_zeros.default, torch.rand(1), [8, 1, 1]),
    A.new_ones: lambda h, _: h(A.new_ones.default, torch.rand(1), [8, 1, 1]),
    A.new_full: lambda h, _: h(A.new_full.default, torch.rand(1), [8, 1, 1], 2.0),
    A.new_empty: lambda h, _: h(A.new_empty.default, torch.rand(1), [8, 1, 1]),
    A.fill: lambda h, _: h(A.fill.Scalar, torch.rand(8, 1, 1), 2.0),
    A.fill_: lambda h, _: h(A.fill_.Scalar, torch.rand(8, 1, 1), 2.0),
    A.zero_: lambda h, _: h(A.zero_.default, torch.rand(8, 1, 1)),
}.items():
    both(
        _op,
        Case(lambda h, x, make=_make: h(A.mul.Tensor, x, make(h, x)), ALL, ALL),
        Case(  # one of its positions is read by number
            lambda h, x, make=_make: h(A.select.int, h(A.mul.Tensor, x, make(h, x)), 1, 0), NONE
        ),
    )
both(
    A.scalar_tensor,
    Case(lambda h, x: h(A.mul.Tensor, x, h(A.scalar_tensor.default, 2.0)), ALL, ALL),
    Case(summed(lambda h, x: h(A.add.Tensor, x, h(A.scalar_tensor.default, 2.0))), NONE),
)
for _op in (A.lift_fresh, A.lift_fresh_copy):
    both(
        _op,
        Case(lambda h, x, op=_op: h(A.mul.Tensor, x, h(op.default, torch.tensor(2.0))), ALL, ALL),
        Case(lambda h, x, op=_op: h(A.mul.Tensor, x, h(op.default, torch.rand(8, 1, 1))), NONE),
    )
for _op, _make in {
    A.bernoulli: lambda h, n: h(A.bernoulli.default, torch.full((n, 1, 1), 0.5)),
    A.bernoulli_: lambda h, n: h(A.bernoulli_.float, torch.rand(n, 1, 1), 0.5),
    A.rand: lambda h, n: h(A.rand.default, [n, 1, 1]),
    A.randn: lambda h, n: h(A.randn.default, [n, 1, 1]),
    A.rand_like: lambda h, n: h(A.rand_like.default, torch.rand(n, 1, 1)),
    A.randn_like: lambda h, n: h(A.randn_like.default, torch.rand(n, 1, 1)),
    A.uniform_: lambda h, n: h(A.uniform_.default, torch.rand(n, 1, 1)),
    A.normal_: lambda h, n: h(A.normal_.default, torch.rand(n, 1, 1)),
    A.arange: lambda h, n: h(A.arange.default, n).view(n, 1, 1),
    A.linspace: lambda h, n: h(A.linspace.default, 0, 1, n).view(n, 1, 1),
    A.randperm: lambda h, n: h(A.randperm.default, n).view(n, 1, 1),
    A.eye: lambda h, n: h(A.eye.default, n)[0].view(n, 1, 1),
}.items():
    both(  # one number for all channels says nothing of them, one for each is of fixed size
        _op,
        Case(lambda h, x, make=_make: h(A.mul.Tensor, x, make(h, 1)), ALL, ALL),
        Case(lambda h, x, make=_make: h(A.mul.Tensor, x, make(h, 8)), NONE),
    )
both(
    A.sym_size,
    Case(lambda h, x: h(A.mul.Scalar, x, h(A.sym_size.int, x, 1)), ALL, ALL),
    Case(lambda h, x: h(A.mul.Tensor, x, torch.rand(h(A.sym_size.int, x, 1), 1, 1)), NONE),
)

# Layout -----------------------------------------------------------------------------------------
passes(A.permute, lambda h, x: h(A.permute.default, x, [0, 1, 3, 2]))
passes(A.unsqueeze, lambda h, x: h(A.unsqueeze.default, x, 2))
passes(A.unsqueeze_, lambda h, x: h(A.unsqueeze_.default, x, -1))
passes(A.flip, lambda h, x: h(A.flip.default, x, [2]))
passes(A.repeat_interleave.self_int, lambda h, x: h(A.repeat_interleave.self_int, x, 2, 2))
for _func in (A.transpose.int, A.transpose_.default):
    passes(_func.overloadpacket, lambda h, x, f=_func: h(f, x, 2, 3))
for _op in (A.t, A.t_, A.numpy_T):
    both(
        _op,
        Case(lambda h, x, op=_op: h(op.default, x), ALL, ALL, at=0, shape=(2, 8)),
        Case(
            lambda h, x, op=_op: h(A.sum.dim_IntList, h(op.default, x), [0]), NONE, shape=(2, 8),
            options=UNKNOWN,
        ),
    )  # fmt: skip
for _op in (A.squeeze, A.squeeze_):
    both(
        _op,
        Case(lambda h, x, op=_op: h(op.dim, x, 2), ALL, ALL, shape=(2, 8, 1, 4)),
        Case(lambda h, x, op=_op: h(op.default, x), "..abcdef", "..abcdef", shape=(2, 8, 1, 4)),
    )
both(
    A.expand,
    Case(lambda h, x: h(A.expand.default, x, [2, 8, 5, 4]), ALL, ALL, shape=(2, 8, 1, 4)),
    Case(summed(lambda h, x: h(A.expand.default, x, [2, 8, 5, 4])), NONE, shape=(2, 8, 1, 4),
         options=UNKNOWN),
)  # fmt: skip
both(
    A.repeat,
    Case(lambda h, x: h(A.repeat.default, x, [1, 2, 1, 1]), ALL, ALL + ALL),
    Case(lambda h, x: h(
        A.mul.Tensor, h(A.repeat.default, x, [1, 2, 1, 1]), torch.rand(16, 1, 1)), NONE),
)  # fmt: skip
both(
    A.slice,
    Case(lambda h, x: h(A.slice.Tensor, x, 1, 2, 8, 2), ALL, "ceg"),
    Case(lambda h, x: h(A.mul.Tensor, h(A.slice.Tensor, x, 1, 2, 5), torch.rand(3, 1, 1)),
         "ab...cde"),
)  # fmt: skip
both(
    A.select,
    Case(lambda h, x: h(A.select.int, x, 2, 0), ALL, ALL),
    Case(lambda h, x: h(A.select.int, x, 1, 0), NONE),
)
both(
    A.unbind,
    Case(lambda h, x: h(A.unbind.int, x, 3)[0], ALL, ALL),
    Case(lambda h, x: h(A.unbind.int, x, 1)[0], NONE),
)
for _op, _halves, _parts in (
    (A.split, (4,), (3,)), (A.unsafe_split, (4,), (3,)), (A.chunk, (2,), (3,)),
    (A.unsafe_chunk, (2,), (3,)), (A.tensor_split, (2,), (3,)),
):  # fmt: skip
    _form = {A.chunk: "default", A.unsafe_chunk: "default", A.tensor_split: "sections"}
    _func = getattr(_op, _form.get(_op, "Tensor"))
    both(
        _op,
        Case(lambda h, x, f=_func, a=_halves: h(f, x, *a, 1)[1], "abcdabcd", "abcd"),
        Case(lambda h, x, f=_func, a=_parts: h(f, x, *a, 1)[1], NONE),
    )
both(
    A.split_with_sizes,
    Case(lambda h, x: h(A.split_with_sizes.default, x, [3, 5], 1)[1], ALL, "defgh"),
    Case(lambda h, x: h(
        A.mul.Tensor, h(A.split_with_sizes.default, x, [3, 5], 1)[1], torch.rand(5, 1, 1)),
        "abc....."),
)  # fmt: skip
for _op in (A.cat, A.concat):
    both(
        _op,
        Case(lambda h, x, op=_op: h(op.default, [x, torch.rand(2, 3, 4, 4)], 1), ALL, ALL + "..."),
        Case(lambda h, x, op=_op: h(op.default, [x, torch.rand(2, 8, 4, 4)], 2), NONE, NONE),
    )
both(
    A.stack,
    Case(lambda h, x: h(A.stack.default, [x, x], 1), ALL, ALL, at=2),
    Case(lambda h, x: h(A.stack.default, [x, torch.rand(2, 8, 4, 4)], 1), NONE, NONE, at=2),
)
both(
    A.constant_pad_nd,
    Case(lambda h, x: h(A.constant_pad_nd.default, x, [0, 0, 0, 0, 1, 2]), ALL,
         "iabcdefghjk"),
    Case(summed(lambda h, x: h(A.constant_pad_nd.default, x, [1, 1], 3.0)), NONE),
)  # fmt: skip
both(
    A.roll,
    Case(lambda h, x: h(A.roll.default, x, [1], [2]), ALL, ALL),
    Case(lambda h, x: h(A.roll.default, x, [1], [1]), NONE, NONE),
)

# Reshapes ---------------------------------------------------------------------------------------
for _op, _func in (
    (A.view.default, A.view.default), (A._unsafe_view, A._unsafe_view.default),
    (A.reshape, A.reshape.default),
):  # fmt: skip
    both(
        _op,
        Case(lambda h, x, f=_func: h(f, x, [2, 2, 4, 16]), "(ab)(ac)(ad)(ae)(fb)(fc)(fd)(fe)",
             "bcde", at=2),
        Case(lambda h, x, f=_func: h(  # both factors meet a fixed size
            A.mul.Tensor, h(f, x, [2, 2, 4, 16]), torch.rand(2, 4, 1)), NONE, NONE[:4], at=2),
    )  # fmt: skip
both(
    A._reshape_alias,
    Case(lambda h, x: h(A._reshape_alias.default, x, [2, 8, 16], [128, 16, 1]), ALL, ALL),
    Case(lambda h, x: h(A._reshape_alias.default, x, [2, 0, 4], [0, 4, 1]), NONE,
         shape=(2, 8, 0, 4)),
)  # fmt: skip
both(
    A.as_strided_,
    Case(lambda h, x: h(A.as_strided_.default, x, [2, 8, 4, 4], [128, 1, 32, 8]), ALL, ALL),
    Case(lambda h, x: h(A.as_strided_.default, x, [2, 4, 8, 4], [128, 32, 4, 1]), NONE, None),
)
for _op in (A.channel_shuffle, A.native_channel_shuffle):
    both(
        _op,
        Case(lambda h, x, op=_op: h(op.default, x, 2), "abcdabcd", "aabbccdd"),
        Case(lambda h, x, op=_op: h(A.mul.Tensor, h(op.default, x, 2), torch.rand(8, 1, 1)), NONE),
    )
both(
    A.pixel_shuffle,
    Case(lambda h, x: h(A.pixel_shuffle.default, x, 2), "aaaabbbb", "ab"),
    Case(summed(lambda h, x: h(A.pixel_shuffle.default, x, 2)), NONE, options=UNKNOWN),
)
both(
    A.pixel_unshuffle,
    Case(lambda h, x: h(A.pixel_unshuffle.default, x, 2), ALL, "".join(c * 4 for c in ALL)),
    Case(summed(lambda h, x: h(A.pixel_unshuffle.default, x, 2)), NONE, options=UNKNOWN),
)
both(
    A.unfold,
    Case(lambda h, x: h(A.unfold.default, x, 2, 2, 1), ALL, ALL),
    Case(lambda h, x: h(A.unfold.default, x, 1, 2, 1), NONE, None),
)
_WINDOWS = ([2, 2], [1, 1], [0, 0], [1, 1])
both(
    A.im2col,
    Case(lambda h, x: h(A.im2col.default, x, *_WINDOWS), ALL, "".join(c * 4 for c in ALL)),
    Case(lambda h, x: h(A.im2col.default, x, *_WINDOWS), NONE, None, shape=(2, 3, 8, 4), dim=2),
)
both(
    A.col2im,
    Case(lambda h, x: h(A.col2im.default, x, [4, 4], *_WINDOWS), "aaaabbbb", "ab", shape=(2, 8, 9)),
    Case(lambda h, x: h(A.col2im.default, x, [3, 5], *_WINDOWS), NONE, None, shape=(2, 4, 8),
         dim=2),
)  # fmt: skip

# Looked up by number ------------------------------------------------------------------------------
both(
    A.embedding,
    Case(lambda h, x: h(A.embedding.default, x, torch.tensor([0, 2])), ALL, ALL, shape=(5, 8)),
    Case(lambda h, x: h(A.embedding.default, x, torch.tensor([0, 2])), NONE, None, shape=(8, 5),
         dim=0),
)  # fmt: skip
for _op, _n in ((A.grid_sampler, 2), (A.grid_sampler_2d, 2), (A.grid_sampler_3d, 3)):
    both(
        _op,
        Case(lambda h, x, op=_op, n=_n: h(op.default, x, torch.rand(2, *[3] * n, n), 0, 0, False),
             ALL, ALL, shape=(2, 8, *[4] * _n)),
        Case(lambda h, x, op=_op, n=_n: h(op.default, x, torch.rand(2, *[3] * n, n), 0, 0, False),
             NONE, None, shape=(2, 3, 8, *[4] * (_n - 1)), dim=2),
    )  # fmt: skip
_AT = torch.tensor([0, 2])
both(
    A.index_select,
    Case(lambda h, x: h(A.index_select.default, x, 2, _AT), ALL, ALL),
    Case(lambda h, x: h(A.index_select.default, x, 1, _AT), NONE, None),
)
both(
    A.index,
    Case(lambda h, x: h(A.index.Tensor, x, [None, None, _AT]), ALL, ALL),
    Case(lambda h, x: h(A.index.Tensor, x, [None, _AT]), NONE, None),
)
both(  # along its last dimension alone, where no other has channels
    A.gather,
    Case(lambda h, x: h(A.mul.Tensor, x, h(A.gather.default, torch.rand(4), 0, _AT).sum()), ALL),
    Case(lambda h, x: h(A.gather.default, x, 2, torch.zeros(2, 8, 1, 4, dtype=int)), NONE, None),
)
for _func in (A.index_put.default, A.index_put_.default, A._unsafe_index_put.default):
    both(
        _func.overloadpacket,
        Case(lambda h, x, f=_func: h(f, h.activation((5, 8)), [torch.tensor([0, 2])], x), ALL, ALL,
             shape=(2, 8)),
        Case(lambda h, x, f=_func: h(f, x, [_AT], torch.rand(2, 4)), NONE, None, shape=(8, 4),
             dim=0),
    )  # fmt: skip

# Contractions -------------------------------------------------------------------------------------
_CONV = ([1, 1], [0, 0], [1, 1], False, [0, 0], 1)
_EXACT = (False, False, False, False)
for _func, _more in ((A.convolution.default, ()), (A._convolution.default, _EXACT)):
    both(
        _func.overloadpacket,
        Case(lambda h, x, f=_func, m=_more: h(f, x, h.parameter(3, 8, 1, 1), None, *_CONV, *m),
             ALL, "ijk"),
        Case(lambda h, x, f=_func, m=_more: h(f, x, torch.rand(3, 8, 1, 1), None, *_CONV, *m),
             NONE, None),
    )  # fmt: skip
both(
    A.addmm,
    Case(lambda h, x: h(A.addmm.default, h.parameter(3), x, h.parameter(8, 3)), ALL, "ijk",
         shape=(2, 8)),
    Case(lambda h, x: h(A.addmm.default, x, torch.rand(2, 3), torch.rand(3, 8)), NONE,
         shape=(2, 8)),
)  # fmt: skip
both(
    A.mm,
    Case(lambda h, x: h(A.mm.default, x, h.parameter(8, 3)), ALL, "ijk", shape=(2, 8)),
    Case(lambda h, x: h(A.mm.default, x, torch.rand(8, 3)), NONE, None, shape=(2, 8)),
)
both(
    A.linear,
    Case(lambda h, x: h(A.linear.default, x, h.parameter(3, 8)), ALL, "ijk", shape=(2, 8)),
    Case(lambda h, x: h(A.linear.default, x, torch.rand(3, 8)), NONE, None, shape=(2, 8)),
)
both(  # the batch is summed as well: never followed
    A.addbmm,
    Case(lambda h, x: h(A.mul.Tensor, x, h(
        A.addbmm.default, torch.rand(1, 1), torch.rand(2, 1, 3), torch.rand(2, 3, 1))), ALL, ALL),
    Case(lambda h, x: h(A.addbmm.default, torch.rand(4, 5), x, torch.rand(2, 8, 5)), NONE,
         shape=(2, 4, 8), dim=2),
)  # fmt: skip
for _op in (A.bmm, A.matmul):
    both(
        _op,
        Case(lambda h, x, op=_op: h(op.default, x, torch.rand(2, 4, 5)), ALL, ALL, shape=(2, 8, 4)),
        Case(lambda h, x, op=_op: h(op.default, torch.rand(2, 3, 8), x), NONE, None,
             shape=(2, 8, 4)),
    )  # fmt: skip
both(
    A.baddbmm,
    Case(lambda h, x: h(A.baddbmm.default, torch.rand(2, 8, 5), x, torch.rand(2, 4, 5)), ALL, ALL,
         shape=(2, 8, 4)),
    Case(lambda h, x: h(A.baddbmm.default, x, torch.rand(2, 8, 3), torch.rand(2, 3, 4)), NONE,
         shape=(2, 8, 4)),
)  # fmt: skip
for _op in (A.mv, A.dot):
    _shape = (8,) if _op is A.dot else (4, 8)
    both(
        _op,
        Case(lambda h, x, op=_op, n=_shape: h(
            A.mul.Tensor, x, h(op.default, torch.rand(n), torch.rand(8)).sum()), ALL, ALL),
        Case(lambda h, x, op=_op: h(op.default, x, torch.rand(8)), NONE, shape=_shape,
             dim=len(_shape) - 1),
    )  # fmt: skip
