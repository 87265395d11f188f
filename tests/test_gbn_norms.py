"""Norms settled on what they see compute what they did, with statistics that are true."""

import pytest
import torch
from torch import nn

import gbn


def spoilt(norm):
    with torch.no_grad():
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
        if norm.affine:
            norm.weight.uniform_(-2, 2)
            norm.bias.uniform_(-1, 1)
    return norm


def test_the_function_stays_and_training_steps_start_from_it():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), spoilt(nn.BatchNorm2d(6)), nn.ReLU(), nn.Conv2d(6, 4, 3),
        spoilt(nn.BatchNorm2d(4)),
    ).eval()  # fmt: skip
    x = torch.randn(32, 3, 8, 8)
    before = model(x)
    assert (model.train()(x) - before).abs().max() > 0.1
    for norm, momentum in ((model[1], 0.1), (model[4], 0.1)):
        spoilt(norm).momentum = momentum
    before = model.eval()(x)
    gbn.settle_norms(model, [x[:16], x[16:]])
    assert torch.allclose(model(x), before, atol=1e-5)
    # the variance of a batch is the biased one, which is why the two are not quite equal
    assert torch.allclose(model.train()(x), before, atol=1e-2)


def test_statistics_are_those_of_what_the_norm_reads():
    norm = spoilt(nn.BatchNorm1d(3)).eval()
    x = torch.randn(10, 3) * 3 + 1
    gbn.settle_norms(norm_model := nn.Sequential(norm), [x[:4], x[4:]])
    assert torch.allclose(norm_model[0].running_mean, x.mean(0), atol=1e-6)
    assert torch.allclose(norm_model[0].running_var, x.var(0), atol=1e-5)


def test_norms_that_cannot_take_the_difference_up_are_left_alone():
    torch.manual_seed(0)
    plain, one, two = (spoilt(nn.BatchNorm1d(3, affine=a)) for a in (False, True, True))
    two.weight = one.weight
    unused = spoilt(nn.BatchNorm1d(3))
    model = nn.Sequential(plain, one, two).eval()
    model.unused = unused
    model.forward = lambda x: two(one(plain(x)))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    gbn.settle_norms(model, [torch.randn(8, 3)])
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_norms_without_an_offset_stay_as_they_are_and_do_not_stop_the_others():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.BatchNorm2d(3, bias=False), nn.BatchNorm2d(3, bias=False), spoilt(nn.BatchNorm2d(3))
    ).eval()
    x = torch.randn(16, 3, 8, 8) * 2
    before = model(x)
    gbn.settle_norms(model, [x])
    assert torch.equal(model[0].running_var, torch.ones(3))
    assert torch.allclose(model[2].running_mean, model[:2](x).mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(model(x), before, atol=1e-5)


def test_a_channel_that_does_not_vary_keeps_its_scale():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), spoilt(nn.BatchNorm2d(4))).eval()
    with torch.no_grad():
        model[0].weight[0] = 0
    x = torch.randn(16, 3, 8, 8)
    before, scale = model(x), model[1].weight[0].item()
    gbn.settle_norms(model, [x])
    assert model[1].weight[0].item() == pytest.approx(scale)
    assert torch.allclose(model(x), before, atol=1e-5)
    assert torch.allclose(model.train()(x)[:, 0], before[:, 0], atol=1e-5)
