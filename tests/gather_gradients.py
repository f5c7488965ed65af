"""Run under torchrun: a loss over gathered rows has, summed over ranks, the gradient that one process finds."""

import torch
import torch.distributed as dist

from mofore.distributed import gather, gather_objects, mean, most, rank, world

if __name__ == "__main__":
    dist.init_process_group("gloo")
    rows = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))

    whole = torch.cat([rows + i for i in range(world())]).requires_grad_()
    (whole @ whole.T).logsumexp(dim=1).sum().backward()

    own = (rows + rank()).requires_grad_()
    every = gather(own)
    assert torch.equal(every, whole), "rows in the order of ranks"
    # each rank's loss is over its own rows against all: the ranks' losses add up to the whole
    (own @ every.T).logsumexp(dim=1).sum().backward()
    torch.testing.assert_close(own.grad, whole.grad[4 * rank() : 4 * rank() + 4])

    assert mean(torch.tensor([float(rank())])).item() == (world() - 1) / 2
    assert most([float(rank()), -float(rank()), 0.5], torch.device("cpu")) == [world() - 1, 0.0, 0.5]
    assert gather_objects({"rank": rank()}) == [{"rank": number} for number in range(world())]
    dist.destroy_process_group()
