"""Cases of norms, pools and reductions; see `rule_cases`."""

import torch
from rule_cases import ALL, NONE, UNKNOWN, A, V, both
from rule_harness import Case


def _first(out):
    return out[0] if isinstance(out, tuple | list) else out


# Norms --------------------------------------------------------------------------------------------
def _affine(h, width):
    return h.parameter(width), h.parameter(width)


_RUNNING = {
    A.native_batch_norm: (False, 0.1, 1e-5),
    A._native_batch_norm_legit: (False, 0.1, 1e-5),
    A._native_batch_norm_legit_no_training: (0.1, 1e-5),
    A._batch_norm_no_update: (0.1, 1e-5),
    A._batch_norm_with_update: (0.1, 1e-5),
    A._native_batch_norm_legit_functional: (False, 0.1, 1e-5),
    A.cudnn_batch_norm: (False, 0.1, 1e-5),
    A.miopen_batch_norm: (False, 0.1, 1e-5),
}
_ELSEWHERE = (A.cudnn_batch_norm, A.miopen_batch_norm)  # ops of other devices


def _norm(op, tail, affine):
    def run(h, x):
        result = (torch.rand(x.shape), torch.rand(0), torch.rand(0)) if op in _ELSEWHERE else None
        statistics = (h.parameter(8), h.parameter(8)) if affine else (torch.rand(8), torch.rand(8))
        weights = _affine(h, 8) if affine else (torch.rand(8), torch.rand(8))
        return h(op.default, x, *weights, *statistics, *tail, result=result)[0]

    return run


for _op, _tail in _RUNNING.items():
    both(
        _op, Case(_norm(_op, _tail, affine=True), ALL, ALL),
        Case(_norm(_op, _tail, affine=False), NONE, NONE),
    )  # fmt: skip
for _func, _count in (
    (A.native_layer_norm.default, 2), (A.rms_norm.default, 1), (A._fused_rms_norm.default, 1),
):  # fmt: skip
    both(
        _func.overloadpacket,
        Case(lambda h, x, f=_func, n=_count: _first(h(f, x, [4], *[torch.rand(4)] * n, 1e-5)), ALL,
             ALL, shape=(2, 8, 4)),
        Case(lambda h, x, f=_func, n=_count: _first(h(f, x, [8], *_affine(h, 8)[:n], 1e-5)), NONE,
             NONE, shape=(2, 8)),
    )  # fmt: skip


both(  # as many groups as channels: each alone
    A.native_group_norm,
    Case(lambda h, x: h(A.native_group_norm.default, x, *_affine(h, 8), 2, 8, 16, 8, 1e-5)[0], ALL,
         ALL),
    Case(lambda h, x: h(A.native_group_norm.default, x, *_affine(h, 8), 2, 8, 16, 4, 1e-5)[0],
         NONE, NONE),
)  # fmt: skip

# Pools --------------------------------------------------------------------------------------------
_POOLS = {
    A.max_pool2d_with_indices.default: ([2, 2],),
    A.max_pool3d_with_indices.default: ([2, 2, 2],),
    A.max_pool2d.default: ([2, 2],),
    A.avg_pool1d.default: ([2],),
    A.avg_pool2d.default: ([2, 2],),
    A.avg_pool3d.default: ([2, 2, 2],),
    A._adaptive_avg_pool2d.default: ([2, 2],),
    A._adaptive_avg_pool3d.default: ([2, 2, 2],),
    A.adaptive_avg_pool1d.default: ([2],),
    A.adaptive_max_pool2d.default: ([2, 2],),
    A.adaptive_max_pool3d.default: ([2, 2, 2],),
    A.upsample_nearest1d.default: ([6],),
    A.upsample_nearest2d.default: ([6, 6],),
    A.upsample_nearest3d.default: ([6, 6, 6],),
    A._upsample_nearest_exact2d.default: ([6, 6],),
    A.upsample_linear1d.default: ([6], False),
    A.upsample_bilinear2d.default: ([6, 6], False),
    A.upsample_bicubic2d.default: ([6, 6], False),
    A.upsample_trilinear3d.default: ([6, 6, 6], False),
    A._upsample_bilinear2d_aa.default: ([6, 6], False),
    A._upsample_bicubic2d_aa.default: ([6, 6], False),
    A.reflection_pad1d.default: ([1] * 2,),
    A.reflection_pad2d.default: ([1] * 4,),
    A.reflection_pad3d.default: ([1] * 6,),
    A.replication_pad1d.default: ([1] * 2,),
    A.replication_pad2d.default: ([1] * 4,),
    A.replication_pad3d.default: ([1] * 6,),
}
for _func, _rest in _POOLS.items():
    _sides = next(n for n in (1, 2, 3) if f"{n}d" in str(_func))
    both(
        _func.overloadpacket,
        Case(lambda h, x, f=_func, r=_rest: _first(h(f, x, *r)), ALL, ALL,
             shape=(2, 8, *[4] * _sides)),
        Case(lambda h, x, f=_func, r=_rest: _first(h(f, x, *r)), NONE, None,
             shape=(2, 3, 8, *[4] * (_sides - 1)), dim=2),
    )  # fmt: skip
_BOXES = torch.tensor([[0.0, 0, 0, 3, 3]])
for _func, _rest in (
    (V.roi_align.default, (1.0, 2, 2, 1, False)),
    (V.roi_pool.default, (1.0, 2, 2)),
):
    both(
        str(_func.overloadpacket._qualified_op_name),
        Case(lambda h, x, f=_func, r=_rest: _first(h(f, x, _BOXES, *r)), ALL, ALL),
        Case(lambda h, x, f=_func, r=_rest: _first(h(f, x, _BOXES, *r)), NONE, None,
             shape=(2, 3, 8, 4), dim=2),
    )  # fmt: skip

# Reductions ---------------------------------------------------------------------------------------
_REDUCTIONS = {
    A.mean.dim: ([2],), A.amax.default: ([2],), A.amin.default: ([2],), A.var.correction: ([2],),
    A.std.correction: ([2],), A.var_mean.correction: ([2],), A.std_mean.correction: ([2],),
    A.max.dim: (2,), A.min.dim: (2,), A.argmax.default: (2,), A.argmin.default: (2,),
    A.prod.dim_int: (2,), A.all.dim: (2,), A.logsumexp.default: ([2],),
    A.count_nonzero.dim_IntList: ([2],), A.linalg_vector_norm.default: (2, [2]),
    A.norm.ScalarOpt_dim: (2, [2]),
}  # fmt: skip
for _func, _rest in _REDUCTIONS.items():
    _over = (*_rest[:-1], [1] if isinstance(_rest[-1], list) else 1)
    both(
        _func.overloadpacket,
        Case(lambda h, x, f=_func, r=_rest: _first(h(f, x, *r)), ALL, ALL),
        Case(lambda h, x, f=_func, r=_over: _first(h(f, x, *r)), NONE),
    )
both(  # zeros add nothing, what is not known may
    A.sum,
    Case(lambda h, x: h(A.sum.dim_IntList, x, [1]), ALL),
    Case(lambda h, x: h(A.sum.dim_IntList, x, [1]), NONE, options=UNKNOWN),
)
both(
    A.any,
    Case(lambda h, x: h(A.any.dim, x, 1), ALL),
    Case(lambda h, x: h(A.any.dim, x, 1), NONE, options=UNKNOWN),
)
for _func, _rest in {
    A._softmax.default: (False,), A._safe_softmax.default: (), A._log_softmax.default: (False,),
    A.cumsum.default: (), A.sort.default: (),
}.items():  # fmt: skip
    both(
        _func.overloadpacket,
        Case(lambda h, x, f=_func, r=_rest: _first(h(f, x, 2, *r)), ALL, ALL),
        Case(lambda h, x, f=_func, r=_rest: _first(h(f, x, 1, *r)), NONE, None),
    )
both(
    A.topk,
    Case(lambda h, x: h(A.topk.default, x, 2, 2)[0], ALL, ALL),
    Case(lambda h, x: h(A.topk.default, x, 2, 1)[0], NONE, None),
)
