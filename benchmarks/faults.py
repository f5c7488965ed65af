"""A campaign of faults against a small run of several ranks: python -m benchmarks.faults --faults 200

    undisturbed run -> its last checkpoint is the reference
    again and again: start the ranks, let one fault happen, see that all end in time and leave no process behind
    where a run has reached its last step: every tensor must equal the reference bit for bit; then a fresh folder

Ranks are forked from this process, which has loaded everything, and are otherwise what SLURM starts: one task a
rank, nobody to end one for another's sake. Faults inside the program's own steps are set off by replacing, in the
forked rank, the function that does that step. A full and a read-only disk are a tmpfs where mounting is allowed;
else a limit on the size of files stands in for the full one, and the other is left out, which the table says.
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

from benchmarks.fault_campaign import KINDS, Campaign


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--faults", type=int, default=200, help="how many must have happened (default: 200)"
    )
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--zero", type=int, default=2, help="ZeRO stage (default: 2)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--only", nargs="+", choices=KINDS, metavar="KIND", default=KINDS, help="; ".join(KINDS)
    )
    options = parser.parse_args()
    # else ranks share one with this process, and may die holding it
    tqdm.set_lock(threading.RLock())
    tqdm.monitor_interval = 0
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        campaign = Campaign(Path(folder), options.ranks, options.zero, options.seed)
        try:
            kinds = [kind for kind in options.only if campaign.mounted or kind != "read-only disk"]
            deck: list[str] = []
            with tqdm(total=options.faults, desc="faults", dynamic_ncols=True) as bar:
                while (happened := campaign.done.total()) < options.faults and len(
                    campaign.wrong
                ) < 5:
                    bar.update(happened - bar.n)
                    if not deck:  # every kind once, in an order drawn anew
                        deck = campaign.rng.sample(kinds, len(kinds))
                    campaign.suffer(deck.pop())
            campaign.finish()
        finally:
            if campaign.mounted:
                subprocess.run(["umount", campaign.disk], check=False)
    print(f"{'fault':34} happened")
    for kind in options.only:
        note = "  (left out: no tmpfs can be mounted here)" if kind not in kinds else ""
        print(f"{kind:34} {campaign.done[kind]:8}{note}")
    print(
        f"{campaign.done.total()} faults in {campaign.starts} starts of {options.ranks} ranks at ZeRO {options.zero}; "
        f"{campaign.runs} runs reached their end, {len(campaign.wrong)} losses; {time.monotonic() - began:.0f} s"
    )
    for wrong in campaign.wrong:
        print(f"  {wrong}")
    return 1 if campaign.wrong or not campaign.runs else 0


if __name__ == "__main__":
    sys.exit(main())
