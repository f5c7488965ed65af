"""Run under torchrun: every collective returns on each rank what its docstring says."""

import torch
import torch.distributed as dist

from mofore.parallel.collectives import (
    all_gather,
    all_gather_objects,
    all_reduce_max,
    all_reduce_mean,
    get_rank,
    get_world_size,
)

if __name__ == "__main__":
    dist.init_process_group("gloo")
    rows = torch.arange(12.0).view(4, 3)
    gathered = all_gather(rows + 100 * get_rank())
    expected = torch.cat([rows + 100 * rank for rank in range(get_world_size())])
    assert torch.equal(gathered, expected), "rows in rank order"

    assert all_reduce_mean(torch.tensor([float(get_rank())])).item() == (get_world_size() - 1) / 2
    assert all_reduce_max([float(get_rank()), -float(get_rank()), 0.5], torch.device("cpu")) == [
        get_world_size() - 1,
        0.0,
        0.5,
    ]
    assert all_gather_objects({"rank": get_rank()}) == [
        {"rank": number} for number in range(get_world_size())
    ]
    dist.destroy_process_group()
