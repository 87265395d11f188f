"""A watched run: which outputs are seen, which models are refused."""

import collections
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gbn
from gbn.running import output_tensors

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@dataclasses.dataclass
class Detections:
    scores: torch.Tensor
    name: str = "boxes"


class Plain:
    def __init__(self, value):
        self.value = value


Pair = collections.namedtuple("Pair", ["a", "b"])


class Returns(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 1)
        self.wrap = wrap

    def forward(self, x):
        return self.wrap(self.head(F.relu(self.stem(x))))


@pytest.mark.parametrize(
    "wrap",
    [Detections, Plain, lambda t: Pair(1, [t, None]), lambda t: {"out": Plain((t,))}],
    ids=["dataclass", "object", "namedtuple", "nested"],
)
def test_outputs_inside_objects_are_kept_and_compared(wrap, prune_and_prove, group_of):
    result = prune_and_prove(Returns(wrap), X)
    assert group_of(result.groups, "head").reason == "is a model output"
    with torch.no_grad():
        result.small.head.bias += 1
    assert not gbn.prove(result.model, result.plan, result.small, X).ok


@pytest.mark.parametrize(
    ("wrap", "text"),
    [
        (lambda t: t.tolist(), "the model returns no tensor but list"),
        (lambda t: [t, iter([t])], r"the output\[1\] is a list_iterator, in which tensors cannot"),
        (lambda t: {"f": lambda: t}, r"the output\['f'\] is a function, in which tensors cannot"),
    ],
)
def test_outputs_that_hide_tensors_are_refused(wrap, text):
    with pytest.raises(gbn.TraceError, match=text):
        gbn.trace(Returns(wrap), X)


def test_an_object_that_holds_itself_is_walked_once():
    value = Plain(torch.ones(2))
    value.me = value
    assert len(output_tensors(value)) == 1


def test_torchscript_is_refused_by_name():
    scripted = torch.jit.script(nn.Sequential(nn.Conv2d(8, 8, 1)))
    model = nn.Sequential(nn.Conv2d(3, 8, 1), scripted)
    with pytest.raises(gbn.TraceError, match="1 is a TorchScript module"):
        gbn.trace(model, X)


def test_inference_mode_is_refused():
    with torch.inference_mode():
        model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
        with pytest.raises(gbn.TraceError, match=r"torch\.inference_mode cannot be followed"):
            gbn.trace(model, X)
    with pytest.raises(gbn.TraceError, match=r"torch\.inference_mode cannot be followed"):
        gbn.trace(model, X)


def test_a_forward_with_randomness_of_its_own_is_compared_under_one_seed(prune_and_prove):
    class Noisy(Returns):
        def forward(self, x):
            return super().forward(x + torch.randn_like(x))

    model = Noisy(lambda t: t)
    state = torch.get_rng_state()
    result = prune_and_prove(model, X)
    assert result.proof.max_abs_diff < 1e-9 and not result.groups.hard_coded
    assert torch.equal(state, torch.get_rng_state())
