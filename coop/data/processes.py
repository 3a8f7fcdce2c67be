"""What the processes of a distributed run tell each other of image features.

Only tensors are sent, from and to the run's own device: NCCL knows no others.
"""

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

# Rows per message: 32 MB of 512 floats, which is all that is held twice.
ROWS = 16384


def rank() -> int:
    """Which of the processes this is."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def as_first_process_says(mask: np.ndarray, device: torch.device) -> np.ndarray:
    """The first process's mask (N), in all processes."""
    if world() == 1:
        return mask
    sent = torch.from_numpy(mask.astype(np.uint8)).to(device)
    dist.broadcast(sent, src=0)
    return sent.cpu().numpy().astype(bool)


def exchange(features: Tensor, owner: np.ndarray, device: torch.device) -> None:
    """Give all processes all rows of the features (N, E), which lie on the CPU: each is sent once, by its owner (N)."""
    if world() == 1:
        return
    for source in range(world()):
        owned = torch.from_numpy(np.flatnonzero(owner == source))
        for rows in owned.split(ROWS) if len(owned) else ():
            sent = features[rows].to(device)  # of others' rows: room for them
            dist.broadcast(sent, src=source)
            features[rows] = sent.cpu()
