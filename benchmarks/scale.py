"""What a run on 1,024 ranks opens, reads, sends and stores: python -m benchmarks.scale

No rank but this process exists, except in the part `slices`. Each part prints its table:

    order        the samples of all ranks are those of one
    draw         what a rank computes in each step, to know the samples
    slices       what a rank holds: the arithmetic of the parts below against DeepSpeed's engines
    resume       a small checkpoint, written and resumed rank by rank with real files
    layout       files of a large model's checkpoint, from the shapes alone, and what a resume opens
    manifest     reading the manifest, on every rank
    store        heartbeats and connections
    step         bytes that the collectives of a step move, by arithmetic
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.rank_slices import computed_slices, real_slices
from benchmarks.scale_checkpoint import (
    RankCost,
    plan_checkpoint,
    planned_resume,
    random_state,
    resume,
    write_checkpoint,
)
from benchmarks.scale_traffic import (
    PERIOD,
    agreement_bytes,
    check_sample_order,
    measure_heartbeats,
    measure_manifest,
    step_traffic,
    time_order,
)
from benchmarks.simulated_ranks import model_parameters
from mofore.config import PretrainConfig, compose

SMALL = ("experiment=demo",)
STAGES = (1, 3)
REAL_RANKS = (1, 2, 4)
SAMPLED_RANKS = 64  # of a resume that is only counted
Row = dict[str, Any]


def sample_order(options: argparse.Namespace) -> list[Row]:
    ranks, videos, steps = options.ranks, 100 * options.ranks, 6
    samples = check_sample_order(ranks, videos, 4 * ranks, steps)
    return [{"ranks": f"{ranks}, then {ranks // 2}", "steps": steps, "equal samples": samples}]


def draw_cost(options: argparse.Namespace) -> list[Row]:
    counts = [factor * options.rows for factor in (1, 10, 1000)]
    return [{"videos": count, "ms a step": round(1000 * time_order(count), 3)} for count in counts]


def held_slices(options: argparse.Namespace) -> list[Row]:
    parameters, rows = model_parameters(small_config()), []
    edges = sorted({0, 5, options.ranks // 2, options.ranks - 1})
    found = [(ranks, "gloo", real_slices(list(SMALL), ranks)) for ranks in REAL_RANKS]
    for rank in edges:
        faked = real_slices(list(SMALL), options.ranks, rank)
        found.append((options.ranks, f"fake, rank {rank}", faked))
    for ranks, group, by_stage in found:
        for stage, by_rank in by_stage.items():
            equal = [
                held == computed_slices(parameters, stage, rank, ranks)
                for rank, held in by_rank.items()
            ]
            count = sum(map(len, by_rank.values()))
            row = {"ranks": ranks, "process group": group, "stage": stage}
            rows.append({**row, "slices compared": count, "equal": all(equal)})
    return rows


def small_resume(options: argparse.Namespace) -> list[Row]:
    parameters, rows = model_parameters(small_config()), []
    state, written = random_state(parameters), options.ranks
    for stage in STAGES:
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = write_checkpoint(Path(folder), parameters, stage, written, state)
            for ranks in target_ranks(written):
                costs = resume(checkpoint, parameters, stage, ranks, state)
                rows.append({"stage": stage, "files": written, **cost_row(costs, options)})
    return rows


def large_layout(options: argparse.Namespace) -> list[Row]:
    config = large_config(options)
    parameters, written, rows = model_parameters(config), options.ranks, []
    for stage in STAGES:
        planned = plan_checkpoint(parameters, stage, written)
        sizes = planned.file_bytes
        facts = {
            "stage": stage,
            "files": written,
            "MB a file": f"{min(sizes) / 1e6:.2f} to {max(sizes) / 1e6:.2f}",
            "GB in all": round(sum(sizes) / 1e9, 2),
            "slices": len(planned.layout.starts),
            "MB to rank 0": round(planned.report_bytes * written / 1e6, 2),
            "MB to all": round(planned.layout_bytes / 1e6, 2),
        }
        resumes = [(stage, ranks) for ranks in target_ranks(written)]
        for target, ranks in [*resumes, (4 - stage, written)]:
            chosen = range(0, ranks, max(1, ranks // SAMPLED_RANKS))
            costs = [planned_resume(planned, parameters, target, ranks, rank) for rank in chosen]
            row = cost_row(costs, options, ranks)
            rows.append({**facts, "to stage": target, **row})
    return rows


def target_ranks(ranks: int) -> list[int]:
    """What a checkpoint of `ranks` is resumed on."""
    return [ranks, ranks // 2, max(1, ranks // 128)]


def cost_row(costs: list[RankCost], options: argparse.Namespace, ranks: int | None = None) -> Row:
    opens = [cost.verified + cost.opened for cost in costs]
    return {
        "to ranks": ranks or len(costs),
        "verified": max(cost.verified for cost in costs),
        "opened": f"{min(c.opened for c in costs)} to {max(c.opened for c in costs)}",
        "opens": max(opens),
        "s to open": round(max(opens) * options.latency / 1000, 2),
        "MB read": round(max(cost.bytes_read for cost in costs) / 1e6, 2),
        "MB received": round(max(cost.bytes_received for cost in costs) / 1e6, 2),
    }


def manifest_cost(options: argparse.Namespace) -> list[Row]:
    cost, rows = measure_manifest(options.rows), []
    for count in (options.rows, 1000 * options.rows):
        rows.append(
            {
                "videos": count,
                "from": "measured" if count == options.rows else "estimated",
                "GB file": round(cost.file_bytes * count / 1e9, 3),
                "GB read": round(cost.read_bytes * count / 1e9, 3),
                "GB held": round(cost.held_bytes * count / 1e9, 3),
                "GB peak": round(cost.peak_bytes * count / 1e9, 3),
                "s to read": round(cost.seconds * count, 1),
            }
        )
    return rows


def store_cost(options: argparse.Namespace) -> list[Row]:
    cost = measure_heartbeats(options.ranks)
    total = cost.requests_of_rank_0 + (options.ranks - 1) * cost.requests_of_others
    return [
        {
            "ranks": options.ranks,
            "requests of rank 0": cost.requests_of_rank_0,
            "of each other": cost.requests_of_others,
            "in all per second": round(total / PERIOD),
            "bytes a report": round(cost.report_bytes),
            "s of rank 0": round(cost.seconds_of_rank_0, 3),
            "open files": cost.open_files,
        }
    ]


def step_cost(options: argparse.Namespace) -> list[Row]:
    config, rows = large_config(options), []
    parameters = model_parameters(config)
    width = next(p.shape[-1] for p in parameters if p.name == "student.prefix_tokens")
    for stage in STAGES:
        traffic = step_traffic(config, parameters, width, stage, options.ranks)
        rows.append(
            {
                "stage": stage,
                "videos": config.global_batch,
                "MB keys": round(traffic.keys / 1e6, 1),
                "GB gradients": round(traffic.gradients / 1e9, 2),
                "GB weights": round(traffic.weights / 1e9, 2),
                "kB compared": round(agreement_bytes(options.ranks) / 1e3, 1),
            }
        )
    return rows


def small_config() -> PretrainConfig:
    return compose(PretrainConfig, [*SMALL, "data.manifest=none"])


def large_config(options: argparse.Namespace) -> PretrainConfig:
    fixed = ["data.manifest=none", f"global_batch={4 * options.ranks}"]
    return compose(PretrainConfig, [*fixed, *options.overrides])


PARTS: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
    "order": sample_order,
    "draw": draw_cost,
    "slices": held_slices,
    "resume": small_resume,
    "layout": large_layout,
    "manifest": manifest_cost,
    "store": store_cost,
    "step": step_cost,
}


def print_table(title: str, rows: Iterable[Row]) -> None:
    rows = [{name: str(value) for name, value in row.items()} for row in rows]
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
    print(f"\n{title}")
    for row in [{name: name for name in widths}, *rows]:
        print("  ".join(f"{row[name]:>{width}}" for name, width in widths.items()), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.scale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="some only")
    parser.add_argument("--ranks", type=int, default=1024, help="default: 1024")
    parser.add_argument("--rows", type=int, default=10**6, help="of the manifest (default: 10^6)")
    parser.add_argument(
        "--latency", type=float, default=5.0, help="assumed ms to open a file (default: 5)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the tables as JSON too")
    parser.add_argument(
        "--overrides",
        nargs="+",
        metavar="KEY=VALUE",
        default=["backbone=vit_gigantic"],
        help="of the large model (default: backbone=vit_gigantic)",
    )
    options = parser.parse_args()
    tables = {}
    for part in options.parts:
        tables[part] = PARTS[part](options)
        print_table(part, tables[part])
        if options.out:
            options.out.write_text(json.dumps(tables, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
