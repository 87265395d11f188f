"""A plan is plain data; applied, it reshapes a model and nothing else."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gbn
from gbn.plan import choose

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    def __init__(self, width=12):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.mid, self.group = nn.Conv2d(width, 10, 1), nn.BatchNorm2d(10)
        self.parts = (4, 6)
        self.a, self.b = nn.Conv2d(4, 8, 1), nn.Conv2d(6, 8, 1)
        self.last = nn.Linear(8, 4)
        self.last.bias.requires_grad_(False)

    def forward(self, x):
        x = F.relu(self.depthwise(F.relu(self.norm(self.stem(x)))))
        a, b = torch.split(F.relu(self.group(self.mid(x))), self.parts, 1)
        return self.last(F.relu(self.a(a) + self.b(b)).mean((2, 3)))


@pytest.fixture
def made(randomised):
    torch.manual_seed(0)
    model = randomised(Net()).eval()
    groups = gbn.trace(model, X)
    return model, groups, gbn.plan(groups, gbn.magnitude_scores(model, groups), flops=0.4)


def test_the_given_model_is_untouched(made):
    model, _, plan = made
    state, shapes = copy.deepcopy(model.state_dict()), [p.shape for p in model.parameters()]
    ids = [id(p) for p in model.parameters()]
    small = gbn.prune(model, plan)
    assert [id(p) for p in model.parameters()] == ids
    assert [p.shape for p in model.parameters()] == shapes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model.parts == (4, 6) and model.depthwise.groups == 12
    storages = {p.data_ptr() for p in model.parameters()}
    assert not storages & {p.data_ptr() for p in small.parameters()}


def test_kept_channels_keep_their_values(made):
    model, _, plan = made
    small = gbn.prune(model, plan)
    kept = list(plan.kept["stem.weight"][0])
    assert torch.equal(small.stem.weight, model.stem.weight[kept])
    assert torch.equal(small.norm.running_var, model.norm.running_var[kept])
    assert torch.equal(small.depthwise.weight, model.depthwise.weight[kept])
    rows = list(plan.kept["mid.weight"][0])
    assert torch.equal(small.mid.weight, model.mid.weight[rows][:, kept])


def test_sizes_beside_the_weights_follow(made):
    model, _, plan = made
    small = gbn.prune(model, plan)
    width = len(plan.kept["stem.weight"][0])
    assert small.stem.out_channels == small.norm.num_features == width
    assert small.depthwise.groups == small.depthwise.in_channels == width
    assert small.mid.in_channels == width
    assert small.parts == (small.a.in_channels, small.b.in_channels)
    assert sum(small.parts) == small.mid.out_channels
    assert small.last.in_features == small.a.out_channels


def test_properties_of_parameters_are_kept(made):
    model, _, plan = made
    model.train()
    model.stem.weight.requires_grad_(False)
    small = gbn.prune(model, plan)
    assert small.training and small.norm.training
    assert not small.stem.weight.requires_grad and small.mid.weight.requires_grad
    assert all(p.is_contiguous() for p in small.parameters())
    small(X).sum().backward()
    assert small.mid.weight.grad.shape == small.mid.weight.shape


def test_a_fresh_instance_takes_the_pruned_weights(made):
    model, _, plan = made
    small = gbn.prune(model, plan).eval()
    fresh = gbn.apply_plan(Net(), plan)
    fresh.load_state_dict(small.state_dict())
    assert torch.equal(fresh.eval()(X), small(X))


def test_a_plan_survives_json(made, tmp_path):
    model, _, plan = made
    plan.save(tmp_path / "plan.json")
    loaded = gbn.PrunePlan.load(tmp_path / "plan.json")
    assert loaded == plan
    assert gbn.PrunePlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    assert torch.equal(gbn.prune(model, loaded)(X), gbn.prune(model, plan)(X))


def test_cutting_in_two_steps_is_cutting_once(made):
    """The second plan is of the same groups, from the atoms that the first left."""
    model, groups, _ = made
    scores = gbn.magnitude_scores(model, groups)
    masks = [choose(groups, scores, flops=0.7)]
    masks.append(choose(groups, scores, flops=0.4, alive=masks[0]))
    assert not (masks[1] & ~masks[0]).any()
    first, second = (gbn.PrunePlan.of(groups, alive) for alive in masks)
    once = gbn.prune(model, first).eval()
    twice = gbn.prune(once, second.after(first)).eval()
    at_once = gbn.prune(model, second).eval()
    assert twice.mid.weight.numel() < once.mid.weight.numel() < model.mid.weight.numel()
    for name, value in twice.state_dict().items():
        assert torch.equal(value, at_once.state_dict()[name]), name
    assert at_once.parts == twice.parts and at_once.depthwise.groups == twice.depthwise.groups
    assert torch.equal(at_once(X), twice(X))
    assert gbn.prove(model, second, twice, X).ok


def test_a_model_of_another_width_is_refused_before_anything_changes(made):
    _, _, plan = made
    other = Net(width=14)
    with pytest.raises(gbn.PlanMismatch, match=r"made for '.*' of shape \(12.*here it is \(14"):
        gbn.apply_plan(other, plan)
    assert other.stem.weight.shape[0] == 14 and other.a.weight.shape == (8, 4, 1, 1)


def test_a_model_that_was_already_cut_is_refused(made):
    model, _, plan = made
    with pytest.raises(gbn.PlanMismatch, match="here it is"):
        gbn.prune(gbn.prune(model, plan), plan)


def test_a_model_without_the_tensors_is_refused(made):
    _, _, plan = made
    with pytest.raises(gbn.PlanMismatch, match="which this model does not have"):
        gbn.prune(nn.Linear(2, 2), plan)


def test_a_model_without_the_sizes_is_refused_before_anything_changes(made):
    model, _, plan = made
    other = copy.deepcopy(model)
    del other.parts
    with pytest.raises(gbn.PlanMismatch, match=r"'parts'"):
        gbn.apply_plan(other, plan)
    other.parts = (5, 5)
    with pytest.raises(gbn.PlanMismatch, match=r"'parts'"):
        gbn.apply_plan(other, plan)
    assert other.stem.weight.shape[0] == 12


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda d: d | {"format": "other"}, "not a plan of this library"),
        (lambda d: {k: v for k, v in d.items() if k != "gates"}, "the plan is damaged: .*gates"),
        (lambda d: d | {"kept": {"stem.weight": {"zero": [1]}}}, "the plan is damaged"),
        (lambda d: d | {"kept": {"stem.weight": {"0": None}}}, "the plan is damaged"),
        (lambda d: d | {"sizes": [{"module": "a"}]}, "the plan is damaged"),
        (lambda d: d | {"kept": [1, 2]}, "the plan is damaged"),
        (lambda d: d | {"kept": {"stem.weight": {"0": [0, 99]}}}, "the plan is damaged"),
        (lambda d: d | {"kept": {"stem.weight": {"0": [3, 1]}}}, "the plan is damaged"),
        (lambda d: d | {"kept": {"stem.weight": {"0": [-1, 1]}}}, "the plan is damaged"),
        (lambda d: d | {"kept": {"stem.weight": {"7": [0, 1]}}}, "the plan is damaged"),
        (lambda d: d | {"kept": {"stranger": {"0": [0, 1]}}}, "the plan is damaged"),
        (lambda d: [d], "not a plan of this library"),
        (lambda _: "plan", "not a plan of this library"),
    ],
)  # fmt: skip
def test_damaged_plans_are_refused(damage, text, made, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(damage(made[2].to_dict())))
    with pytest.raises(gbn.PlanMismatch, match=text):
        gbn.PrunePlan.load(path)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\x00", b""])
def test_what_is_not_json_is_refused(content, tmp_path):
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(gbn.PlanMismatch, match=r"plan.json is not JSON"):
        gbn.PrunePlan.load(path)
