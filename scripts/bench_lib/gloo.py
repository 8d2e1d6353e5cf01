"""PyTorch's side of every job with ranks."""

import os
import socket


def join(comm) -> None:
    """torch.distributed over gloo, on the ranks of ``comm``; one thread each, the same seed."""
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    torch.manual_seed(0)
    if not distributed.is_initialized():
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ["MASTER_PORT"] = str(comm.bcast(free_port() if comm.rank == 0 else None))
        distributed.init_process_group("gloo", rank=comm.rank, world_size=comm.size)


def optimizer_of(module, lr: float):
    import torch

    return torch.optim.AdamW(module.parameters(), lr=lr, fused=True)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
