"""Random vectors that are a function of given ones."""

import torch
from torch import Tensor

# Odd numbers with well-mixed bits (splitmix64), as signed integers; products wrap around.
STEP, MIX_1, MIX_2 = (number - 2**64 for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def noise_for(features: Tensor) -> Tensor:
    """Features (B, E) to independent Gaussian directions (B, E) of the same norms.

    A row depends on the bits of its own feature alone: equal features give equal noise, on every device and in every
    batch, and features that differ in one bit give noise that has nothing to do with it. No random number generator
    is touched, and nothing waits for the device.
    """
    bits = features.detach().float().contiguous().view(torch.int32).long()
    place = torch.arange(1, bits.shape[-1] + 1, device=bits.device)
    seed = _mix(bits + place * STEP).sum(dim=-1, keepdim=True)
    # Two uniform numbers of 24 bits each, above 0 and at most 1; Box and Muller's normal ones of them.
    drawn = [_mix(seed + (2 * place + which) * STEP) >> 40 & 2**24 - 1 for which in (0, 1)]
    radius, angle = ((number + 0.5) / 2**24 for number in drawn)
    noise = (-2 * radius.log()).sqrt() * torch.cos(2 * torch.pi * angle)
    scale = features.detach().norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True)
    return (scale * noise).to(features.dtype)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ (x >> 30)) * MIX_1
    x = (x ^ (x >> 27)) * MIX_2
    return x ^ (x >> 31)
