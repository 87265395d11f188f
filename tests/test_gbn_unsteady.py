"""A forward that keeps what it computed at its first call runs fewer ops at the next."""

import functools

import torch
from torch import nn

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@functools.lru_cache
def code(width: int, device: torch.device) -> torch.Tensor:
    return torch.arange(width, device=device).float().reshape(1, 1, -1)


class Cached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix, self.head = nn.Conv2d(3, 16, 1), nn.Linear(16, 12), nn.Linear(12, 5)

    def forward(self, x):
        tokens = self.mix(self.stem(x).flatten(2).transpose(1, 2)).relu()
        return self.head(tokens * code(1, x.device)).mean(1) + self.head(tokens).amax(1)


def test_a_cache_filled_by_the_first_run_is_no_fault_of_the_cut(prune_and_prove):
    code.cache_clear()
    result = prune_and_prove(Cached(), X)
    assert result.groups.hard_coded == ()
    assert result.groups.num_atoms == 16 + 12
