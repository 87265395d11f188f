"""The proof accepts exactly the surgery that the plan says."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gbn
from gbn.proof import distance

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.mid = nn.Conv2d(8, 6, 1)
        self.last = nn.Conv2d(6, 4, 1)

    def forward(self, x):
        return self.last(F.relu(self.mid(F.relu(self.norm(self.stem(x))))))


@pytest.fixture
def made(randomised):
    torch.manual_seed(0)
    model = randomised(Net())
    groups = gbn.trace(model, X)
    return model, gbn.plan(groups, gbn.magnitude_scores(model, groups), flops=0.4)


def test_right_surgery_is_proven_in_float64(made):
    model, plan = made
    proof = gbn.prove(model, plan, gbn.prune(model, plan), X)
    assert proof.ok and not proof.vacuous
    assert proof.dtype == "float64" and proof.tolerance == 1e-6
    assert proof.max_abs_diff < 1e-12 < proof.effect


def test_another_channel_than_the_plan_says_is_caught(made):
    model, plan = made
    for name in ("stem", "mid"):
        kept = copy.deepcopy(plan.kept)
        mine = kept[f"{name}.weight"][0]
        stranger = next(p for p in range(8 if name == "stem" else 6) if p not in mine)
        wrong = tuple(sorted((*mine[1:], stranger)))
        for tensor, dims in kept.items():
            for axis, positions in dims.items():
                if positions == mine and tensor.split(".")[0] != "last":
                    kept[tensor][axis] = wrong
        small = gbn.prune(model, dataclasses.replace(plan, kept=kept))
        assert not gbn.prove(model, plan, small, X).ok


def test_one_wrong_tensor_is_caught(made):
    model, plan = made
    for name in plan.kept:
        small = gbn.prune(model, plan)
        tensor = small.state_dict()[name]
        if tensor.shape[0] > 1:
            tensor.copy_(tensor.roll(1, 0))
            assert not gbn.prove(model, plan, small, X).ok, name


def test_nothing_removed_is_a_vacuous_proof(made):
    model, _ = made
    groups = gbn.trace(model, X)
    plan = gbn.plan(groups, gbn.magnitude_scores(model, groups), flops=1.0)
    proof = gbn.prove(model, plan, gbn.prune(model, plan), X)
    assert proof.ok and proof.vacuous


def test_a_head_of_zeros_is_replaced_by_random_values_for_the_proof(made):
    model, plan = made
    with torch.no_grad():
        model.last.weight.zero_()
    proof = gbn.prove(model, plan, gbn.prune(model, plan), X)
    assert proof.ok and proof.randomised and not proof.vacuous
    # a gate is missing: only random values can tell that it is wrong
    gates = tuple(gate for gate in plan.gates if gate[0] != "norm.bias")
    wrong = dataclasses.replace(plan, gates=gates)
    proof = gbn.prove(model, wrong, gbn.prune(model, wrong), X)
    assert not proof.ok and proof.randomised


def test_a_proof_that_stays_vacuous_is_not_ok(made):
    class Nothing(Net):
        def forward(self, x):
            return super().forward(x) * 0

    model, plan = made
    nothing = Nothing()
    nothing.load_state_dict(model.state_dict())
    proof = gbn.prove(nothing, plan, gbn.prune(nothing, plan), X)
    assert proof.vacuous and proof.randomised and not proof.ok


def test_a_network_that_does_not_run_is_a_failed_proof(made):
    model, plan = made
    small = gbn.prune(model, plan)
    small.last = nn.Conv2d(99, 4, 1)
    with pytest.raises(gbn.ProofFailed, match="the pruned network does not run"):
        gbn.prove(model, plan, small, X)


def test_other_shapes_are_a_failed_proof(made):
    model, plan = made
    small = gbn.prune(model, plan)
    small.last = nn.Conv2d(small.last.in_channels, 3, 1)
    with pytest.raises(gbn.ProofFailed, match=r"gives \(2, 3, 8, 8\), not \(2, 4, 8, 8\)"):
        gbn.prove(model, plan, small, X)


def test_another_number_of_outputs_is_a_failed_proof(made):
    class Twice(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x), self.inner(x)

    model, plan = made
    with pytest.raises(gbn.ProofFailed, match="2 outputs, not 1"):
        gbn.prove(model, plan, Twice(gbn.prune(model, plan)), X)


def test_outputs_that_are_not_numbers_are_no_proof(made):
    model, plan = made
    small = gbn.prune(model, plan)
    with torch.no_grad():
        small.last.bias[0] = torch.nan
    assert not gbn.prove(model, plan, small, X).ok


def test_the_models_are_left_as_they_were(made):
    model, plan = made
    small = gbn.prune(model, plan)
    model.train(), small.train()
    states = [copy.deepcopy(m.state_dict()) for m in (model, small)]
    gbn.prove(model, plan, small, X)
    for m, state in zip((model, small), states, strict=True):
        assert m.training and next(m.parameters()).dtype is torch.float32
        assert all(torch.equal(value, state[name]) for name, value in m.state_dict().items())


def test_a_forward_that_insists_on_float32_is_proven_there(randomised):
    class Casts(Net):
        def forward(self, x):
            if x.dtype is torch.float64:
                raise ValueError("float32 only")
            return super().forward(x)

    model = randomised(Casts())
    groups = gbn.trace(model, X)
    plan = gbn.plan(groups, gbn.magnitude_scores(model, groups), flops=0.5)
    proof = gbn.prove(model, plan, gbn.prune(model, plan), X)
    assert proof.dtype == "float32" and proof.tolerance == 1e-4 and proof.ok


def test_gates_at_zero_silence_their_channels(made):
    model, plan = made
    gated = gbn.gate_to_zero(model, plan)
    gone = [p for p in range(8) if p not in plan.kept["norm.weight"][0]]
    assert gone
    assert not gated.norm.weight[gone].any() and not gated.norm.bias[gone].any()
    assert model.norm.weight[gone].all()
    assert torch.equal(gated.stem.weight, model.stem.weight)


def test_the_distance_of_complex_outputs_has_both_parts():
    reference = torch.complex(torch.ones(3), torch.zeros(3))
    assert distance([reference], [torch.complex(torch.ones(3), torch.full((3,), 9.0))]) == 9.0
    with pytest.raises(gbn.ProofFailed, match=r"gives torch.float32, not torch.complex64"):
        distance([reference], [torch.ones(3)])
    with pytest.raises(gbn.ProofFailed, match="nothing to compare"):
        distance([], [])


class Rounds(Net):
    """Leaves and comes back from a lower precision in the middle."""

    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype

    def forward(self, x):
        y = F.relu(self.norm(self.stem(x))).to(self.dtype)
        y = (y * 1.1).to(self.mid.weight.dtype)
        return self.last(F.relu(self.mid(y)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_casts_of_the_forward_do_not_blur_the_proof(dtype, prune_and_prove):
    proof = prune_and_prove(Rounds(dtype), X).proof
    assert proof.dtype == "float64" and proof.max_abs_diff < 1e-12


def test_a_wrong_surgery_of_a_forward_that_casts_is_found(randomised):
    model = randomised(Rounds(torch.bfloat16))
    groups = gbn.trace(model, X)
    plan = gbn.plan(groups, gbn.magnitude_scores(model, groups), flops=0.5)
    small = gbn.prune(model, plan)
    with torch.no_grad():
        small.last.weight[0] *= 1.001
    assert not gbn.prove(model, plan, small, X).ok


def test_inputs_that_leave_all_behind_the_cut_at_zero_are_replaced(randomised):
    model = randomised(Net())
    with torch.no_grad():  # a relu that is dead on this input whatever the stem's weights are
        model.stem.weight.mul_(1e-6)
        model.stem.bias.fill_(-1.0)
        model.norm.running_mean.zero_()
        model.norm.weight.fill_(1.0)
        model.norm.bias.zero_()
        model.mid.weight.zero_().sub_(1.0)
        model.mid.bias.fill_(-5.0)
    groups = gbn.trace(model, X[:1])
    plan = gbn.plan(groups, gbn.magnitude_scores(model, groups), flops=0.5)
    proof = gbn.prove(model, plan, gbn.prune(model, plan), X[:1])
    assert proof.ok and proof.randomised and proof.effect > 0


def test_a_plan_whose_running_statistics_keep_other_channels_is_damaged(made):
    data = made[1].to_dict()
    kept = data["kept"]["norm.running_mean"]["0"]
    others = [p for p in range(8) if p not in kept]
    data["kept"]["norm.running_mean"]["0"] = sorted([*kept[1:], others[0]])
    with pytest.raises(gbn.PlanMismatch, match=r"'norm.running_mean' keeps other channels"):
        gbn.PrunePlan.from_dict(data)


def test_a_plan_whose_statistics_are_out_of_range_is_damaged(made):
    data = made[1].to_dict()
    data["statistics"] = [
        {"op": "aten.mean.dim", "call": 0, "kept": {"1": [0, 9]}, "sizes": {"1": 8}}
    ]
    with pytest.raises(gbn.PlanMismatch, match=r"statistics of aten.mean.dim number 0"):
        gbn.PrunePlan.from_dict(data)


def test_complex_weights_are_compared_with_both_parts(prune_and_prove):
    class Rotated(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Net()
            self.turn = nn.Parameter(torch.randn(4, 4, dtype=torch.complex64))

        def forward(self, x):
            return (self.net(x).mean((2, 3)).to(self.turn.dtype) @ self.turn).abs()

    done = prune_and_prove(Rotated(), X)
    assert done.proof.dtype == "float64"
    done.small.turn.data.imag.mul_(2)
    assert not gbn.prove(done.model, done.plan, done.small, X).ok


def test_a_function_is_no_model():
    with pytest.raises(gbn.TraceError, match=r"is a function, no nn\.Module"):
        gbn.trace(lambda x: x, X)
