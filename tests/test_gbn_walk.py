"""Walks give what torch's own give; what a run without values remembers is what torch computes."""

import pytest
import torch
from torch import nn

from gbn.shapes_only import _REMEMBERED, execute, forget
from gbn.walk import named_modules, named_parameters, named_tensors, remembered, walked_once

aten = torch.ops.aten


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.again = nn.ModuleList([self.first[0], nn.Linear(4, 4), self.first])
        self.missing = None
        self.register_module("none", None)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.again[1].weight
        self.register_buffer("kept", torch.zeros(2), persistent=False)
        self.register_buffer("empty", None)


def test_modules_and_tensors_come_as_torch_lists_them():
    model = Shared()
    assert named_modules(model) == [*model.named_modules()]
    assert named_modules(model, twice=True) == [*model.named_modules(remove_duplicate=False)]
    names = [name for name, _ in named_tensors(model)]
    assert names == [n for n, _ in (*model.named_parameters(), *model.named_buffers())]
    assert [n for n, _ in named_parameters(model)] == [n for n, _ in model.named_parameters()]
    assert "tied.weight" not in names and "again.1.weight" in names


def test_a_model_is_walked_once_within_a_trace_and_anew_after_it():
    model = nn.Sequential(nn.ReLU())
    with walked_once(model):
        before = named_modules(model)
        assert named_modules(model) is before
        assert remembered(nn.Sequential(), len) == 0  # another model
    model.append(nn.ReLU())
    assert [path for path, _ in named_modules(model)] == ["", "0", "1"]


def meta(*shape, dtype=torch.float32):
    return torch.empty(*shape, dtype=dtype, device="meta")


CALLS = [
    (aten.native_layer_norm.default, (meta(2, 4, 6).transpose(1, 2), [4], None, None, 1e-5)),
    (aten.add.Tensor, (meta(2, 3).t(), meta(3, 2))),
    (aten.mul.Tensor, (meta(4, 1, 5), meta(3, 5))),
    (aten.div.Tensor, (meta(2, 3, 4), meta(()))),
    (aten.sum.dim_IntList, (meta(2, 3, 4), [1])),
    (aten.max_pool2d_with_indices.default, (meta(1, 2, 8, 8), [2, 2])),
    (aten.pow.Tensor_Scalar, (meta(2, 3, dtype=torch.int64), 2)),
    (aten.pow.Tensor_Scalar, (meta(2, 3, dtype=torch.int64), 2.0)),
]


@pytest.mark.parametrize(("func", "args"), CALLS, ids=lambda v: str(v)[:24])
def test_what_is_remembered_is_what_torch_computes(func, args):
    forget()

    def told(out):
        tensors = out if isinstance(out, tuple) else (out,)
        return [(t.shape, t.stride(), t.dtype, t.device) for t in tensors]

    expected = told(func(*args))
    assert told(execute(func, args, {})) == expected
    assert told(execute(func, args, {})) == expected
    forget()
    assert not _REMEMBERED


def test_ops_that_write_or_look_at_the_same_memory_are_always_run():
    forget()
    x = meta(2, 3)
    assert execute(aten.mul_.Tensor, (x, meta(3)), {}) is x
    assert execute(aten.view.default, (x, [3, 2]), {})._is_view()
    assert not _REMEMBERED


def test_values_are_never_remembered():
    forget()
    a, b = torch.ones(2), torch.ones(2)
    assert execute(aten.cat.default, ([a, b],), {}).tolist() == [1, 1, 1, 1]
    a += 1
    assert execute(aten.cat.default, ([a, b],), {}).tolist() == [2, 2, 1, 1]
    assert not _REMEMBERED
