"""Tracing leaves the model as it was, takes any inputs, and says what it cannot follow."""

import collections
import copy

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn

import gbn

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def conv_bn(inner: int, outer: int, kernel: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inner, outer, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(outer)
    )


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = conv_bn(3, 8), conv_bn(8, 6)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Conv2d(6, 4, 1)

    def forward(self, x):
        return self.last(self.drop(F.relu(self.two(F.relu(self.one(x))))))


def everything_of(model):
    """Whatever a trace could have left behind."""
    tensors = [*model.parameters(), *model.buffers()]
    hooks = [
        (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
        for m in model.modules()
    ]
    attributes = [sorted(vars(m)) for m in model.modules()]
    return (
        [m.training for m in model.modules()], hooks, attributes,
        [sorted(vars(t)) for t in tensors], [id(t) for t in tensors],
        [t.requires_grad for t in tensors],
    )  # fmt: skip


def test_the_model_is_left_as_it_was():
    model = Plain().train()
    model.two.eval()  # a part that the user keeps in eval mode
    before, state = everything_of(model), copy.deepcopy(model.state_dict())
    gbn.trace(model, X)
    assert everything_of(model) == before
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [m.training for m in (model, model.one, model.two, model.two[1])] == [
        True, True, False, False,
    ]  # fmt: skip


def test_the_model_is_left_as_it_was_when_it_does_not_run():
    model = Plain().train()
    before = everything_of(model)
    with pytest.raises(gbn.TraceError, match="does not run on the example inputs"):
        gbn.trace(model, X[:, :2])
    assert everything_of(model) == before
    assert torch.backends.mha.get_fastpath_enabled()


def test_what_a_forward_writes_on_its_module_is_taken_back():
    class Caches(Plain):
        def __init__(self):
            super().__init__()
            self.seen = {}
            self.register_buffer("steps", torch.zeros(2))

        def forward(self, x):
            self.steps += 1
            if "scale" not in self.seen:
                self.seen["scale"] = self.one[1].weight * 2
                self.last_input = x
            return self.last(self.two(self.one(x) * self.seen["scale"][:, None, None]))

    model = Caches()
    groups = gbn.trace(model, X)
    assert model.seen == {} and not hasattr(model, "last_input")
    assert model.steps.tolist() == [0, 0]
    assert [len(g.atoms) for g in groups.groups] == [8, 6, 0]


def test_the_inputs_are_left_as_they_were():
    class InPlace(Plain):
        def forward(self, x):
            return super().forward(x.add_(self.last.bias.sum()).relu_())

    x = X.clone()
    model = InPlace()
    gbn.trace(model, x)
    assert torch.equal(x, X)
    assert vars(x) == {}
    plan = gbn.PrunePlan.of(groups := gbn.trace(model, x), _alive(groups))
    gbn.prove(model, plan, gbn.prune(model, plan), x)
    assert torch.equal(x, X)


def _alive(groups):
    return torch.ones(groups.num_atoms, dtype=torch.bool).numpy()


def test_gradients_mode_and_results_of_the_caller_are_untouched():
    model = Plain()
    gbn.trace(model, X)
    assert torch.is_grad_enabled()
    model(X).sum().backward()
    assert model.one[0].weight.grad is not None


def test_a_trace_sees_the_same_in_train_and_eval_mode():
    model = Plain()
    one, two = gbn.trace(model.train(), X), gbn.trace(model.eval(), X)
    assert one.groups == two.groups and one.mac_ops == two.mac_ops


def test_two_traces_agree():
    model = Plain()
    one, two = gbn.trace(model, X), gbn.trace(model, X)
    assert one.groups == two.groups and one.tensors == two.tensors and one.gates == two.gates


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = conv_bn(3, 8), conv_bn(2, 8)
        self.head, self.aux = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 5, 1)

    def forward(self, image, *, depth, scale: float = 1.0):
        x = F.relu(self.a(image) + self.b(depth)) * scale
        return {"main": self.head(x), "more": [self.aux(x), x.mean()], "count": 3}


def test_several_inputs_and_nested_outputs(group_of):
    inputs = {"image": X, "depth": torch.randn(2, 2, 8, 8), "scale": 2.0}
    groups = gbn.trace(TwoInputs(), inputs)
    assert set(group_of(groups, "a.0").layers) == {"a.0", "b.0"}
    assert "statistics are taken over channels (aten.mean.default" in group_of(groups, "a.0").reason


def test_each_output_of_a_dict_is_fixed(prune_and_prove, group_of):
    class Dict(TwoInputs):
        def forward(self, image, depth):
            x = F.relu(self.a(image) + self.b(depth))
            return {"main": self.head(x), "aux": (self.aux(x), [None, 3])}

    result = prune_and_prove(Dict(), (X, torch.randn(2, 2, 8, 8)))
    assert group_of(result.groups, "head").frozen and group_of(result.groups, "aux").frozen
    assert len(group_of(result.groups, "a.0").atoms) == 8


def test_a_returned_feature_map_is_fixed(group_of):
    class Features(Plain):
        def forward(self, x):
            x = F.relu(self.one(x))
            return self.last(F.relu(self.two(x))), x

    groups = gbn.trace(Features(), X)
    assert group_of(groups, "one.0").reason == "is a model output"
    assert len(group_of(groups, "two.0").atoms) == 6


@pytest.mark.parametrize("pattern", ["one", "one.*", "one.0", "one.1", "o?e"])
def test_frozen_patterns_keep_their_channels(pattern, group_of):
    groups = gbn.trace(Plain(), X, freeze=[pattern])
    assert group_of(groups, "one.0").frozen
    assert group_of(groups, "one.0").reason == f"matched by --freeze {pattern}"
    assert len(group_of(groups, "two.0").atoms) == 6


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(gbn.TraceError, match=r"--freeze 'nine' matches no module; .* one, one.0"):
        gbn.trace(Plain(), X, freeze=["nine"])


def test_a_pattern_that_freezes_nothing_is_refused():
    with pytest.raises(gbn.TraceError, match="--freeze 'drop' matches no module with channels"):
        gbn.trace(Plain(), X, freeze=["drop"])


def test_errors_of_the_forward_are_told_in_one_line():
    class Asserts(Plain):
        def forward(self, x):
            assert x.shape[1] == 5, "five\nchannels"
            return x

    with pytest.raises(gbn.TraceError, match="AssertionError: five channels"):
        gbn.trace(Asserts(), X)
    with pytest.raises(gbn.TraceError, match="TypeError"):
        gbn.trace(Plain(), (X, X))


def test_a_network_without_anything_to_prune():
    groups = gbn.trace(nn.Sequential(nn.Conv2d(3, 4, 1)), X)
    assert groups.num_atoms == 0
    assert [g.frozen for g in groups.groups] == [True]


def test_sizes_kept_on_modules_are_bound():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.width = 6
            self.conv = conv_bn(3, 6)
            self.last = nn.Linear(6 * 64, 4)

        def forward(self, x):
            return self.last(F.relu(self.conv(x)).view(-1, self.width * 64))

    groups = gbn.trace(Heads(), X)
    assert groups.num_atoms in (0, 6)  # right or frozen: the product is no attribute
    if not groups.num_atoms:
        assert "test_gbn_trace.py:" in groups.hard_coded[0]


def test_an_attribute_that_a_view_reads_follows(prune_and_prove):
    class Grouped(nn.Module):
        def __init__(self):
            super().__init__()
            self.width = 6
            self.conv = conv_bn(3, 6)
            self.last = nn.Conv2d(6, 4, 1)

        def forward(self, x):
            x = F.relu(self.conv(x))
            return self.last(x.flatten(2).view(len(x), self.width, 8, 8))

    result = prune_and_prove(Grouped(), X)
    assert result.small.width == result.small.conv[0].out_channels < 6
    assert result.model.width == 6


def test_a_forward_that_computes_in_float32_is_traced(prune_and_prove):
    class Casts(Plain):
        def forward(self, x):
            x = F.relu(self.one(x)).float().to(x.dtype)
            return self.last(F.relu(self.two(x)).float().tanh().to(x.dtype))

    result = prune_and_prove(Casts(), X)
    assert result.groups.num_atoms == 14


def test_a_baked_in_size_beside_casts_is_still_found(randomised):
    class Casts(nn.Module):
        """The view hides its mistake, and in float64 the casts are ops of their own."""

        def __init__(self):
            super().__init__()
            self.a = conv_bn(3, 8)
            self.last = nn.Linear(8, 4)

        def forward(self, x):
            y = self.a(x).mean((2, 3)).float().to(x.dtype)
            return self.last(y.view(2, -1, 4).softmax(1).flatten(1))

    model = randomised(Casts())
    groups = gbn.trace(model, X)
    assert groups.num_atoms == 0


def test_a_scripted_function_inside_is_followed(prune_and_prove):
    class Checkpointed(Plain):
        def forward(self, x):
            x = torch.utils.checkpoint.checkpoint(lambda v: F.relu(self.one(v)), x,
                                                  use_reentrant=False)  # fmt: skip
            return self.last(F.relu(self.two(x)))

    assert prune_and_prove(Checkpointed(), X).groups.num_atoms == 14


def test_channels_last_networks_are_followed(prune_and_prove, group_of):
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.pool = conv_bn(3, 8), nn.AdaptiveAvgPool2d(1)
            self.last = nn.Linear(8, 4)

        def forward(self, x):
            return self.last(self.pool(F.relu(self.conv(x))).flatten(1))

    model = Pooled().to(memory_format=torch.channels_last)
    result = prune_and_prove(model, X.to(memory_format=torch.channels_last))
    assert len(group_of(result.groups, "conv.0").atoms) == 8
    assert not result.groups.unknown_ops


class DividesByWidth(nn.Module):
    """The sum is divided by a width read from the tensor: only comparing outputs shows it."""

    def __init__(self, cast):
        super().__init__()
        self.a, self.b, self.cast = conv_bn(3, 8), conv_bn(3, 6), cast
        self.last = nn.Conv2d(6, 4, 1)

    def forward(self, x):
        a = F.relu(self.a(x))
        if self.cast:
            a = a.float().to(x.dtype)
        return self.last(F.relu(self.b(x))) + a.sum(1, keepdim=True) / a.shape[1]


@pytest.mark.parametrize("cast", [False, True])
def test_a_width_that_enters_the_arithmetic_is_found_and_frozen(cast, randomised, group_of):
    model = randomised(DividesByWidth(cast))
    groups = gbn.trace(model, X)
    assert group_of(groups, "a.0").frozen
    assert "test_gbn_trace.py:" in group_of(groups, "a.0").reason
    assert "aten.div.Tensor" in group_of(groups, "a.0").reason
    assert len(group_of(groups, "b.0").atoms) == 6


def test_freeze_knows_every_name_of_a_shared_module():
    shared = nn.Conv2d(8, 8, 1)
    layers = [nn.Conv2d(3, 8, 1), nn.ReLU(), shared, nn.ReLU(), shared, nn.ReLU()]
    model = nn.Sequential(*layers, nn.Conv2d(8, 4, 1))
    assert gbn.trace(model, X).num_atoms == 8
    for name in ("2", "4"):
        groups = gbn.trace(model, X, freeze=[name])
        assert groups.num_atoms == 0
        assert {g.reason for g in groups.groups} == {
            f"matched by --freeze {name}",
            "is a model output",
        }


@pytest.mark.parametrize(
    "last",
    [copy.deepcopy, nn.Parameter, lambda y: y.as_subclass(type("Own", (torch.Tensor,), {}))],
    ids=["deepcopy", "parameter", "subclass"],
)
def test_what_the_model_returns_keeps_its_size_whatever_object_it_is(last):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.h = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 3)

        def forward(self, x):
            return last(self.h(self.a(x)))

    groups = gbn.trace(Net(), torch.randn(1, 3, 8, 8))
    assert all("h" not in group.layers or group.frozen for group in groups.groups)


def test_a_forward_that_checks_its_widths_with_an_exception_of_its_own_is_frozen():
    class WidthError(Exception):
        pass

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.h = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 3)

        def forward(self, x):
            y = self.a(x)
            if y.shape[1] != 8:
                raise WidthError(y.shape)
            return self.h(y)

    groups = gbn.trace(Net(), torch.randn(1, 3, 8, 8))
    assert groups.num_atoms == 0 and groups.hard_coded


def test_sizes_in_a_named_tuple_follow():
    Sizes = collections.namedtuple("Sizes", "heads dim")

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.sizes = Sizes(3, 4)
            self.a, self.h = nn.Conv2d(3, 12, 3), nn.Linear(12, 5)

        def forward(self, x):
            y = self.a(x).view(x.shape[0], self.sizes.heads, self.sizes.dim, -1).mean(-1)
            return self.h(y.flatten(1))

    model = Net()
    groups = gbn.trace(model, torch.randn(1, 3, 8, 8))
    plan = gbn.plan(groups, gbn.magnitude_scores(model, groups), flops=0.7)
    assert isinstance(gbn.prune(model, plan).sizes, Sizes)


class Wide(nn.Module):
    """Tokens whose width a view is told, and a layer beside it that knows nothing of it."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Linear(12, 16), nn.LayerNorm(16)
        self.three, self.back = nn.Linear(16, 48), nn.Linear(16, 16)
        self.up, self.down, self.head = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 4)

    def forward(self, x):
        x = self.norm(self.embed(x))
        q, k, v = self.three(x).view(-1, 5, 3, x.size(2)).unbind(2)
        x = x + self.back(q * k.sigmoid() + v)
        return self.head((x + self.down(self.up(x).relu())).mean(1))


def test_a_size_baked_into_a_flat_graph_freezes_what_meets_it_alone(prune_and_prove):
    """Layers of a graph have no modules of their own: one view must not freeze the whole model."""
    flat = torch.fx.symbolic_trace(Wide().eval())
    image = torch.randn(2, 5, 12)
    groups = gbn.trace(flat, image, prune_norms=True)
    frozen = {group.name: group.frozen for group in groups.groups}
    assert frozen == {"embed": True, "three": True, "up": False, "head": True}
    (place,) = groups.hard_coded
    assert "`view = three.view(-1, 5, 3, size)`" in place
    prune_and_prove(flat, image, flops=0.8)
