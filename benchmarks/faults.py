"""Faults in a small run of several ranks: python -m benchmarks.faults --faults 200

An undisturbed run gives the reference. Then, again and again, the ranks of another run are started
and one fault happens. All ranks must end in time, leave no process behind and lose no committed
checkpoint. If the run has reached its last step, every tensor of its checkpoint must equal the
reference bit for bit, and a new run starts.

Ranks are forked from this process, which has imported everything; otherwise they are what SLURM
starts: one task per rank, and none ends because another has. Faults inside an operation are
injected by replacing its function in the forked rank. Full and read-only disks use a tmpfs if one
can be mounted. Otherwise a limit on the size of files replaces the full disk, and the read-only
disk is left out, as the table says.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.fault_campaign import Campaign
from benchmarks.fault_kinds import DISK_READ_ONLY, KINDS, inject_fault
from mofore.parallel.engine import load_deepspeed

MAX_VIOLATIONS = 5  # after which the campaign ends


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--faults", type=int, default=200, help="that must happen (default: 200)")
    parser.add_argument("--ranks", type=int, default=2, help="default: 2")
    parser.add_argument("--zero-stage", type=int, default=2, help="default: 2")
    parser.add_argument("--seed", type=int, default=0, help="of the order of faults (default: 0)")
    parser.add_argument(
        "--only", nargs="+", choices=KINDS, metavar="KIND", default=KINDS, help="; ".join(KINDS)
    )
    options = parser.parse_args()
    # By default ranks share a lock with this process, and may die while they hold it.
    tqdm.set_lock(threading.RLock())
    tqdm.monitor_interval = 0
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    load_deepspeed()  # once, not in every rank
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        campaign = Campaign(Path(folder), options.ranks, options.zero_stage, options.seed)
        try:
            kinds = [kind for kind in options.only if campaign.mounted or kind != DISK_READ_ONLY]
            run_campaign(campaign, kinds, options.faults)
        finally:
            if campaign.mounted:
                subprocess.run(["umount", campaign.disk], check=False)
    print(f"{'fault':34} happened")
    for kind in options.only:
        note = "" if kind in kinds else "  (left out: no tmpfs can be mounted here)"
        print(f"{kind:34} {campaign.happened[kind]:8}{note}")
    print(
        f"{campaign.happened.total()} faults in {campaign.starts} starts of {options.ranks} ranks "
        f"at ZeRO {options.zero_stage}; {campaign.completed} runs completed, "
        f"{len(campaign.violations)} violations; {time.monotonic() - start:.0f} s"
    )
    for violation in campaign.violations:
        print(f"  {violation}")
    return 1 if campaign.violations or not campaign.completed else 0


def run_campaign(campaign: Campaign, kinds: list[str], faults: int) -> None:
    """Inject faults, every kind once per round in a random order, until enough have happened."""
    pending: list[str] = []
    with tqdm(total=faults, desc="faults", dynamic_ncols=True) as bar:
        while campaign.happened.total() < faults and len(campaign.violations) < MAX_VIOLATIONS:
            bar.update(campaign.happened.total() - bar.n)
            if not pending:
                pending = campaign.rng.sample(kinds, len(kinds))
            inject_fault(campaign, pending.pop())
    campaign.finish()


if __name__ == "__main__":
    sys.exit(main())
