"""Images made from a network's own statistics."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.synthetic import (
    DivergedError,
    ImageRequest,
    make_images,
    mismatch,
    noted_inputs,
    photo_noise,
    remembering_norms,
)

sys.path.insert(0, str(Path(__file__).parent))

from tiny_job import write_job


def network() -> nn.Sequential:
    """Its norms remember an odd kind of image: dim, of high contrast, in stripes."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip
    stripes = 2.0 * torch.sign(torch.randn(64, 2, 1, 8)).expand(64, 2, 8, 8) - 1.0
    for _ in range(30):
        model(stripes)
    return model.eval().requires_grad_(False)


def request(**changes: object) -> ImageRequest:
    settings: dict[str, object] = {
        "num": 24, "input_size": (2, 8, 8), "num_classes": 3, "steps": 30, "seed": 0,
    }  # fmt: skip
    return ImageRequest(**(settings | changes))  # type: ignore[arg-type]


def distance(model: nn.Module, images: torch.Tensor) -> float:
    """Mean over channels and norms of |mean - remembered| and |std - remembered|, in numpy."""
    seen: list[tuple[nn.BatchNorm2d, np.ndarray]] = []
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    handles = [
        norm.register_forward_pre_hook(lambda n, inputs: seen.append((n, inputs[0].numpy())))
        for norm in norms
    ]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    off = []
    for norm, values in seen:
        mean, std = norm.running_mean.numpy(), norm.running_var.numpy() ** 0.5
        off.append(np.abs(values.mean((0, 2, 3)) - mean) / std)
        off.append(np.abs(values.std((0, 2, 3)) - std) / std)
    return float(np.concatenate(off).mean())


def test_statistics_come_nearer_to_the_remembered_ones_than_noise() -> None:
    model = network()
    images = make_images(model, request(), lambda _steps: None)
    noise = photo_noise(24, (2, 8, 8), torch.Generator().manual_seed(0))
    assert distance(model, images) < 0.5 * distance(model, noise)
    assert images.shape == (24, 2, 8, 8)


def test_a_trained_classifier_sees_every_class_as_often(tmp_path: Path) -> None:
    job = write_job(tmp_path)
    scope: dict[str, type[nn.Module]] = {}
    exec(job["arch"].read_text(), scope)
    model = scope["Tiny"]()
    model.load_state_dict(torch.load(job["model"]))
    model.eval().requires_grad_(False)
    wanted = request(input_size=(1, 8, 8), num_classes=4)
    with torch.no_grad():
        noise = model(photo_noise(24, (1, 8, 8), torch.Generator().manual_seed(0))).argmax(1)
    found = model(make_images(model, wanted, lambda _steps: None)).argmax(1)
    assert torch.bincount(found, minlength=4).tolist() == [6, 6, 6, 6]
    assert torch.bincount(noise, minlength=4).tolist() != [6, 6, 6, 6]


def test_the_network_is_left_as_it_was() -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    make_images(model, request(steps=2), lambda _steps: None)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_one_seed_gives_one_batch_and_another_another() -> None:
    model = network()
    first, again, other = (
        make_images(model, request(steps=2, seed=seed), lambda _steps: None) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_network_without_batch_norms_gets_noise_and_costs_no_steps() -> None:
    told: list[int] = []
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU())
    images = make_images(model, request(num_classes=None), told.append)
    assert torch.equal(images, photo_noise(24, (2, 8, 8), torch.Generator().manual_seed(0)))
    assert told == [1]


def test_images_that_diverge_are_refused() -> None:
    model = network()
    model[1].running_mean.fill_(float("inf"))
    with pytest.raises(DivergedError, match="diverged in step 0"):
        make_images(model, request(), lambda _steps: None)


def test_norms_that_remember_nothing_do_not_count() -> None:
    model = nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False), nn.BatchNorm2d(2))
    assert remembering_norms(model) == [model[1]]


def test_mismatch_is_what_a_hand_count_gives() -> None:
    norm = nn.BatchNorm2d(2, eps=0.0)
    norm.running_mean.copy_(torch.tensor([1.0, 0.0]))
    norm.running_var.copy_(torch.tensor([4.0, 1.0]))
    # channel 0: mean 3 (one deviation off), deviation 2; channel 1: mean 0, deviation 3 (two off)
    seen = torch.tensor([[[[1.0, 5.0]], [[-3.0, 3.0]]]])
    assert mismatch(seen, norm).item() == pytest.approx((1.0 + 2.0**2) / 2)


def test_mismatches_are_noted_in_each_run_and_no_more_afterwards() -> None:
    model = network()
    with noted_inputs(remembering_norms(model)) as found:
        model(torch.randn(4, 2, 8, 8))
        assert len(found) == 2
        model(torch.randn(4, 2, 8, 8))
    model(torch.randn(4, 2, 8, 8))
    assert len(found) == 4


def test_noise_is_normalised_and_smooth_as_photographs_are() -> None:
    noise = photo_noise(64, (3, 16, 16), torch.Generator().manual_seed(0)).numpy()
    np.testing.assert_allclose(noise.mean((0, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(noise.std((0, 2, 3)), 1, atol=1e-3)
    neighbours = np.corrcoef(noise[..., 1:].ravel(), noise[..., :-1].ravel())[0, 1]
    channels = np.corrcoef(noise[:, 0].ravel(), noise[:, 1].ravel())[0, 1]
    assert neighbours > 0.5
    assert channels > 0.6
    # power falls with the square of the frequency: an octave up, a quarter
    power = (np.abs(np.fft.rfft2(noise)) ** 2).mean((0, 1))
    assert power[0, 2] / power[0, 4] == pytest.approx(4, rel=0.25)
