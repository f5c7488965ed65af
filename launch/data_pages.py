"""`mofore data`: pages that show what is in a dataset, and what the model will see of it."""

import argparse
from pathlib import Path

from mofore.errors import UserError
from mofore.launch.arguments import Commands, add_command, add_config_dir, add_keys
from mofore.launch.commands import describe_pretrain

SAMPLES, VIDEOS = 8, 48  # shown by default


def add_data(commands: Commands) -> None:
    parser = commands.add_parser(
        "data",
        help="show what is in a dataset, and what the model will see of it",
        description="Show what is in a dataset, and what the model will see of it.",
        examples=(
            "mofore data show data/mine/manifest.parquet",
            "mofore data views data.manifest=data/mine/manifest.parquet",
        ),
    )
    pages = parser.add_subparsers(
        title="commands", required=True, metavar="COMMAND", help="its own --help says more"
    )
    add_show(pages)
    add_views(pages)


def add_show(commands: Commands) -> None:
    parser = add_command(
        commands,
        "show",
        run_show,
        "write an HTML page with statistics of a dataset and frames of its videos",
        examples=(
            "mofore data show data/mine/manifest.parquet",
            "mofore data show data/mine/manifest.parquet --videos 200 --seed 1 --out mine.html",
        ),
    )
    parser.description = f"{parser.description}\n{SHOW_DETAILS}"
    parser.add_argument("manifest", metavar="MANIFEST", help="manifest.parquet")
    parser.add_argument(
        "--videos",
        type=int,
        default=VIDEOS,
        metavar="N",
        help=f"videos of which the middle frame is shown (default: {VIDEOS})",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="draws these videos (default: 0)"
    )
    parser.add_argument(
        "--root", metavar="DIR", help="folder or URL of the videos, if they have moved: data.root"
    )
    add_out(parser, "data.html")


SHOW_DETAILS = """
The page has number, hours, durations, frame sizes and rates, decoders, splits and labels, the
reasons in refused.csv, and the middle frame of some videos drawn at random. A video that does not
decode shows the reason. The page is one file and loads nothing."""


def run_show(arguments: argparse.Namespace) -> int:
    from mofore.launch.data_show import write_page

    check_count("--videos", arguments.videos, 0)
    check_count("--seed", arguments.seed, 0)
    check_folder(arguments.out)
    shown = arguments.videos, arguments.seed, arguments.root
    frames = write_page(arguments.manifest, arguments.out, *shown)
    failed = sum(frame.reason is not None for frame in frames)
    if failed:
        print(f"{failed} of the {len(frames)} videos on the page failed to decode.")
    print(f"page: {arguments.out}")
    return 0


def add_views(commands: Commands) -> None:
    parser = add_command(
        commands,
        "views",
        run_views,
        "write a page with the clips that a run starts with, as the model will see them",
        examples=(
            "mofore data views data.manifest=data/mine/manifest.parquet",
            "mofore data views data.manifest=data/mine/manifest.parquet data.size=128 "
            "--samples 4 --out views.png",
        ),
        describe=describe_pretrain,
    )
    parser.description = f"{parser.description}\n{VIEWS_DETAILS}"
    parser.add_argument(
        "--samples",
        type=int,
        default=SAMPLES,
        metavar="N",
        help=f"videos, from the first step on (default: {SAMPLES})",
    )
    add_out(parser, "views.html", " or .png: an image")
    add_keys(parser)
    add_config_dir(parser)


VIEWS_DETAILS = """
Each sample is a context clip and its targets, cropped, mirrored, with colour changes and noise:
the same as in the first steps of `mofore pretrain` with the same keys. The page is one file and
loads nothing."""


def run_views(arguments: argparse.Namespace) -> int:
    from mofore.config import PretrainConfig, compose
    from mofore.launch.data_views import write_views

    check_count("--samples", arguments.samples, 1)
    check_folder(arguments.out)
    config = compose(PretrainConfig, arguments.keys, arguments.config_dir)
    write_views(config, arguments.out, arguments.samples)
    print(f"page: {arguments.out}")
    return 0


def add_out(parser: argparse.ArgumentParser, default: str, other: str = "") -> None:
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(default),
        metavar="FILE",
        help=f"page to write, .html{other} (default: {default})",
    )


def check_count(name: str, number: int, least: int) -> None:
    if number < least:
        raise UserError(f"{name} {number} must be at least {least}.")


def check_folder(out: Path) -> None:
    """Raise UserError now instead of after the videos were read."""
    if out.is_dir():
        raise UserError(f"--out {out} is a folder. Give a file in it: {out / 'page.html'}")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}. Create it first.")
