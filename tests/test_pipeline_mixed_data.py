"""Mixtures of few images, against arithmetic."""

import numpy as np
import torch

from pipeline.mixed_data import made_images, mixed

IMAGES = torch.randn(24, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def data(seed: int = 0):
    return made_images(IMAGES[:16], IMAGES[16:], batch_size=8, seed=seed)


def test_a_mixture_is_two_images_in_shares_whose_squares_add_up_to_one() -> None:
    basis = torch.eye(6).view(6, 6, 1, 1)
    for row, mixture in enumerate(mixed(basis, torch.Generator().manual_seed(0)).flatten(1)):
        present = mixture.nonzero().flatten().tolist()
        assert row in present
        assert len(present) <= 2
        if len(present) == 2:
            np.testing.assert_allclose(float(mixture.square().sum()), 1, rtol=1e-5)


def test_mixtures_of_normalised_noise_keep_its_variance() -> None:
    noise = torch.randn(400, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    deviation = mixed(noise, torch.Generator().manual_seed(1)).std((0, 2, 3))
    np.testing.assert_allclose(deviation.numpy(), 1, atol=0.1)


def test_an_epoch_repeats_itself_and_the_next_one_differs() -> None:
    first, again, second, other = (
        torch.cat([images for images, _ in source.train_loader(epoch)])
        for source, epoch in ((data(), 0), (data(), 0), (data(), 1), (data(1), 0))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert not torch.equal(first, other)
    assert first.shape == (16, 1, 8, 8)
    assert len(data().train_loader(0)) == 2


def test_statistics_and_comparisons_see_the_images_as_they_are() -> None:
    seen = torch.cat([images for images, _ in data().calibration_batches(2)])
    assert sorted(seen.sum((1, 2, 3)).tolist()) == sorted(IMAGES[:16].sum((1, 2, 3)).tolist())
    held_out = torch.cat([images for images, _ in data().val_loader()])
    assert torch.equal(held_out, IMAGES[16:])
