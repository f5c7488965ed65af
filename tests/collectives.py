"""Run under torchrun: every collective returns on each rank what its docstring says."""

import torch
import torch.distributed as dist

from mofore.parallel.collectives import (
    all_gather,
    all_gather_objects,
    all_reduce_max,
    all_reduce_mean,
    broadcast,
    broadcast_object,
    gather_objects,
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
    # of another size on each rank
    value = {"rank": get_rank(), "long": "x" * 1000 * get_rank()}
    assert broadcast_object(value) == {"rank": 0, "long": ""}
    gathered = gather_objects(value)
    if get_rank() == 0:
        assert [len(each["long"]) for each in gathered] == [
            1000 * number for number in range(get_world_size())
        ]
    else:
        assert gathered == []
    values = torch.full((3,), float(get_rank()))
    broadcast(values[1:], get_world_size() - 1)  # in place, part of a tensor
    assert values.tolist() == [get_rank(), *[get_world_size() - 1] * 2]
    dist.destroy_process_group()
