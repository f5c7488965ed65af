"""Tables of benchmarks.learning: their intervals, and that docs/what-it-learns.md has them."""

import math
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from benchmarks import learning
from benchmarks.recipes import ABLATIONS, RECIPES
from benchmarks.seed_intervals import Sample, SeedVariance, half_width, seed_variances
from benchmarks.tables import build_table, paired_difference, read_sample
from mofore.config import PretrainConfig, flatten_dict, to_plain_dict
from mofore.files import read_jsonl
from tests.pages import REPOSITORY

PAGE = REPOSITORY / "docs/what-it-learns.md"
RESULTS = sorted((REPOSITORY / "benchmarks/results").glob("*.jsonl"))


def line(recipe: str, seed: int, value: float, steps: int = 10) -> dict:
    metrics = ("knn_accuracy", "retrieval_r1", "linear_probe_accuracy")
    metrics += ("clip_order_accuracy", "effective_rank")
    return {
        "recipe": recipe,
        "seed": seed,
        "textures": 150,
        "minutes": 1.0,
        "steps": steps,
        "scores": dict.fromkeys(metrics, [value, value - 0.1, value + 0.1]),
        "correct_by_group": {},
        "curve": [[30, value / 2], [60, value]],
    }


def own_variance(sample: Sample, folds: bool = False) -> SeedVariance:
    return seed_variances({"any": sample}, set(), folds)["any"]


def test_an_interval_has_the_error_of_groups_and_of_seeds() -> None:
    one = read_sample([line("MoFore", 0, 0.5)], "knn_accuracy")
    assert half_width(one, own_variance(one), False) == pytest.approx(0.1)
    two = read_sample([line("MoFore", 0, 0.4), line("MoFore", 1, 0.6)], "knn_accuracy")
    t = 12.706  # one degree of freedom, 97.5%
    assert own_variance(two) == pytest.approx((0.02, 1))
    expected = math.hypot(0.1, t * math.sqrt(0.02 / 2))
    assert half_width(two, own_variance(two), False) == pytest.approx(expected, rel=1e-3)


def test_trained_recipes_share_one_dispersion_over_seeds() -> None:
    """The mean of their variances as shares of p (1 - p). A recipe with one seed uses it too. One
    that is at 1 for every seed cannot vary and does not contribute.
    """
    values = {
        "wide": [0.4, 0.5, 0.6],
        "narrow": [0.2, 0.2, 0.2],
        "one": [0.5],
        "high": [0.9],
        "end": [1.0, 1.0, 1.0],
    }
    runs = {
        name: [line(name, seed, value) for seed, value in enumerate(by_seed)]
        for name, by_seed in values.items()
    }
    samples = {name: read_sample(lines, "knn_accuracy") for name, lines in runs.items()}
    shared = seed_variances(samples, set(samples), False)
    assert shared["wide"] == shared["one"] == pytest.approx((0.005, 4))
    assert shared["narrow"] == pytest.approx((0.02 * 0.16, 4))
    assert shared["high"] == pytest.approx((0.02 * 0.09, 4))
    assert shared["end"] == pytest.approx((0.0, 4))
    expected = math.hypot(0.1, 2.776 * math.sqrt(0.005))
    assert half_width(samples["one"], shared["one"], False) == pytest.approx(expected, rel=1e-3)
    assert seed_variances(samples, {"narrow", "end"}, False)["wide"] == pytest.approx((0.01, 2))


def test_the_difference_of_two_recipes_is_paired_by_group() -> None:
    reference, other = line("MoFore", 0, 0.75), line("weak", 0, 0.5)
    counts = {"videos": [8, 8, 8, 8], "retrieval_r1": [8, 4, 8, 4]}
    reference["correct_by_group"] = counts
    # A quarter less in every group.
    other["correct_by_group"] = counts | {"retrieval_r1": [6, 2, 6, 2]}
    half_widths, values = paired_difference([reference], [other], "retrieval_r1")
    assert (half_widths, values) == (pytest.approx([0.0]), pytest.approx([0.25]))
    other["correct_by_group"] = counts | {"retrieval_r1": [8, 0, 8, 0]}
    half_widths, values = paired_difference([reference], [other], "retrieval_r1")
    assert values == [0.25]
    assert half_widths > 0.1
    assert paired_difference([reference], [other], "knn_accuracy") is None


def test_the_variance_of_a_difference_is_the_sum() -> None:
    trained, fixed, untrained = (
        SeedVariance(0.02, 12),
        SeedVariance(0.0, 2),
        SeedVariance(0.01, 2),
    )
    assert trained.plus(trained) == pytest.approx((0.04, 12))
    assert trained.plus(fixed) == pytest.approx((0.02, 12))
    freedom = 0.03**2 / (0.02**2 / 12 + 0.01**2 / 2)
    assert trained.plus(untrained) == pytest.approx((0.03, freedom))
    assert SeedVariance(0.0, 0).plus(SeedVariance(0.0, 0)) == (0.0, 0)


def test_folds_have_groups_of_their_own() -> None:
    """The mean of four equal folds has half of their error; a spread beyond it is added."""
    equal, error = (np.full(4, 0.1), np.full(4, 0.5)), 0.1 / 1.96
    assert half_width(equal, own_variance(equal, True), True) == pytest.approx(0.05)
    assert half_width(equal, own_variance(equal), False) == pytest.approx(0.1)
    apart = np.full(4, 0.1), np.array([0.2, 0.4, 0.6, 0.8])
    beyond = math.sqrt(np.var(apart[1], ddof=1) - error**2)
    expected = math.hypot(0.05, 3.182 * beyond / 2)
    assert half_width(apart, own_variance(apart, True), True) == pytest.approx(expected, rel=1e-3)
    names = ("MoFore", "weak")
    runs = [line(name, fold, 0.5) | {"textures": 0} for name in names for fold in (0, 1)]
    for run, videos in zip(runs, ([4, 4], [2, 2, 2]) * 2, strict=True):
        correct = videos if run["recipe"] == "MoFore" else [0] * len(videos)
        run["correct_by_group"] = {"videos": videos, "knn_accuracy": correct}
    half_widths, values = paired_difference(runs[:2], runs[2:], "knn_accuracy")
    assert (half_widths.tolist(), values.tolist()) == ([0, 0], [1, 1])


def test_the_table_says_when_the_reference_matches_a_recipe() -> None:
    lines = [line("MoFore", 0, 0.8), line("weak", 0, 0.4), line("strong", 0, 0.9)]
    rows = build_table(lines, "MoFore").splitlines()
    assert [row.split(" | ")[0].strip("| ") for row in rows[2:]] == ["strong", "MoFore", "weak"]
    assert rows[2].endswith("| never |")
    assert rows[4].endswith("| 0.5 min |")


def test_columns_without_values_are_left_out() -> None:
    alone = build_table([line("weak", 0, 0.4)], "MoFore").splitlines()
    assert alone[0] == "| recipe | seeds | steps | kNN | R@1 | probe | clip order | rank |"
    assert len({row.count("|") for row in alone}) == 1


# ------------------------------------------------------------------------------ published tables


def published() -> list[tuple[str, str]]:
    """(command, table) of every command in the page that shows results."""
    pattern = r"^```bash\n([^`]*)^```\n\n((?:\|.*\n)+)"
    found = re.findall(pattern, PAGE.read_text(), re.MULTILINE)
    return [(command.replace("\\\n", " ").strip(), table) for command, table in found]


TABLES = published()


def arguments(command: str) -> list[str]:
    assert command.startswith("python -m benchmarks.learning ")
    return shlex.split(command)[3:]


def test_every_table_of_the_page_has_its_command() -> None:
    heads = re.findall(r"^\| recipe \| seeds \|.*$", PAGE.read_text(), re.MULTILINE)
    assert len(heads) == len(TABLES) > 20


@pytest.mark.parametrize(("command", "table"), TABLES, ids=[command for command, _ in TABLES])
def test_a_table_is_what_its_command_prints(
    command: str, table: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    argv = arguments(command)
    if "--plot" in argv:
        at = argv.index("--plot")
        plot = Path(argv[at + 1])
        assert (REPOSITORY / plot).is_file()
        assert f"]({plot.relative_to('docs')})" in PAGE.read_text()
        del argv[at : at + 2]
    monkeypatch.setattr("sys.argv", ["benchmarks.learning", *argv])
    monkeypatch.chdir(REPOSITORY)
    assert learning.main() == 0
    assert capsys.readouterr().out.strip() == table.strip()


def test_every_result_is_published(monkeypatch: pytest.MonkeyPatch) -> None:
    """No results file has a line that no table of the page shows."""
    monkeypatch.chdir(REPOSITORY)
    shown = set()
    for command, _ in TABLES:
        options = learning.build_parser().parse_args(arguments(command))
        recipes = options.recipes or list(ABLATIONS if options.ablations else RECIPES)
        for each in learning.select_lines(options, recipes, learning.run_settings(options)):
            shown.add((options.results.name, run_key(each)))
    there = {(path.name, run_key(each)) for path in RESULTS for each in read_jsonl(path)}
    assert there == shown


def run_key(each: dict) -> tuple:
    keys = ("recipe", "dataset", "textures", "minutes", "seed")
    return (*(each[key] for key in keys), *each["overrides"])


@pytest.mark.parametrize("path", RESULTS, ids=[path.name for path in RESULTS])
def test_results_have_the_keys_of_today(path: Path) -> None:
    keys = set(flatten_dict(to_plain_dict(PretrainConfig())))
    for each in read_jsonl(path):
        assert set(flatten_dict(each["config"])) <= keys
