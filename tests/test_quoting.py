"""quoting: a key of the type str arrives as it was typed, on every way to a configuration."""

import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from mofore.config import (
    PretrainConfig,
    compose,
    expand_sweep,
    flatten_dict,
    read_config,
    to_plain_dict,
    write_config,
)
from mofore.errors import UserError
from mofore.evaluation.config import EvaluateConfig
from mofore.launch import resume, submit, sweep
from mofore.launch.cli import main
from mofore.launch.cluster import SubmitConfig
from mofore.launch.commands import compose_evaluation, parse_command
from mofore.launch.tasks import pretrain_task
from mofore.quoting import quote_in_shell, split_options, text_keys

SET = "data.manifest=somewhere"
NUMBERS = ("1e3", "0x10", "1_000", "007", "1.50", "20261127_153000", "12", "inf", "nan", "1:30")
WORDS = ("null", "Null", "None", "~", "true", "FALSE", "yes", "on", "")
SIGNS = ("a=b.parquet", "f(x)", ")", "a[0]", "[1,2]", "{a: 1}", "{", "#1", "~/x", "it's", 'a"b')
MORE = (
    "a,b",
    "a b",
    " padded ",
    "naïve",
    "Видео/ビデオ",
    "$HOME",
    "a\\b",
    "end\\",
    "C:\\x\\'",
    "*?!",
)
TEXTS = (*NUMBERS, *WORDS, *SIGNS, *MORE)


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_arrives_as_typed(text: str) -> None:
    assert compose(PretrainConfig, [SET, f"run_dir={text}"]).run_dir == text
    assert compose(EvaluateConfig, [f"run={text}"]).run == text
    assert compose(SubmitConfig, [f"cluster.name={text}"]).cluster.name == text


@pytest.mark.parametrize("text", [each for each in TEXTS if each.lower() != "null"])
def test_a_text_that_may_be_null_arrives_as_typed(text: str) -> None:
    assert compose(PretrainConfig, [SET, f"data.split={text}"]).data.split == text
    assert compose_evaluation(Path("x"), [f"manifest={text}"]).manifest == text


def test_null_is_none_only_where_it_may_be() -> None:
    config = compose(PretrainConfig, [SET, "run_dir=null", "data.split=null", "micro_batch=null"])
    assert (config.run_dir, config.data.split, config.micro_batch) == ("null", None, None)
    assert compose(PretrainConfig, [SET, "data.split='null'"]).data.split == "null"


def test_text_keys_are_those_of_the_dataclasses() -> None:
    texts = text_keys(PretrainConfig)
    assert texts["run_dir"] is texts["data.manifest"] is False
    assert texts["data.split"] is texts["checkpoint.upload"] is True
    assert not {"steps", "workers", "backbone", "backbone.attention"} & set(texts)


def test_a_mapping_that_loses_a_text_is_named() -> None:
    with pytest.raises(UserError, match="data.manifest is a text, and 1000.0 is none"):
        compose(PretrainConfig, ["data={manifest: 1e3, frames: 8}"])
    config = compose(PretrainConfig, ["data={manifest: '1e3', frames: 8}"])
    assert (config.data.manifest, config.data.frames) == ("1e3", 8)


def test_other_keys_are_read_as_values() -> None:
    config = compose(PretrainConfig, [SET, "optimizer.lr=1e-3", "steps=1_000", "workers=3"])
    assert (config.optimizer.lr, config.steps, config.workers) == (1e-3, 1000, 3)


@pytest.mark.parametrize("text", TEXTS)
def test_the_form_for_a_shell_is_the_text(text: str) -> None:
    """What an error shows can be pasted into a shell."""
    (word,) = shlex.split(quote_in_shell("run", text))
    assert compose(EvaluateConfig, [word]).run == text
    command = f"printf %s {quote_in_shell('run', text)}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout == word


def test_interpolations_have_two_meanings() -> None:
    with pytest.raises(UserError, match="two meanings") as mistake:
        compose(PretrainConfig, [SET, "run_dir=runs/${seed}"])
    as_text, as_value = (word.strip(",.;") for word in str(mistake.value).split() if "'" in word)
    found = [
        compose(PretrainConfig, [SET, "seed=7", *shlex.split(word)]).run_dir
        for word in (as_text, as_value)
    ]
    assert found == ["runs/${seed}", "runs/7"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.manifst=a=b", """quote it: 'data.manifst="a=b"'.*Did you mean data.manifest"""),
        ("experiment=f(x", """quote it: 'experiment="f\\(x"'"""),
        ("steps=(3", "steps=.3: the value cannot be read"),
        ("steps=1,2", r"steps=1,2: several values .*--multirun.*steps=\[1,2\]"),
        ("run dir=3", "'run dir' is not a key"),
        ("steps = 3", "'steps ' is not a key: .*without blanks"),
        ("steps", "write KEY=VALUE"),
    ],
)
def test_a_value_that_cannot_be_read_is_explained(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as mistake:
        compose(PretrainConfig, [SET, override])
    for jargon in ("Lexer", "EOF", "mismatched", "hydra.cc", "\n"):
        assert jargon not in str(mistake.value)


@pytest.mark.parametrize("text", TEXTS)
def test_a_run_folder_has_the_text(tmp_path: Path, text: str) -> None:
    """config.yaml is read by `mofore resume`, and with PyYAML by reports."""
    config = compose(PretrainConfig, [SET, f"run_dir={text}", f"data.manifest={text}"])
    write_config(config, tmp_path / "config.yaml")
    assert read_config(tmp_path / "config.yaml") == config
    values = yaml.safe_load((tmp_path / "config.yaml").read_text(encoding="utf-8"))
    assert values["run_dir"] == text


def test_a_run_folder_has_an_interpolation_as_text(tmp_path: Path) -> None:
    config = compose(PretrainConfig, [SET, "run_dir='\\${seed}'"])
    assert config.run_dir == "${seed}"
    write_config(config, tmp_path / "config.yaml")
    assert read_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize("text", ["20261127_153000", "1e3", "a=b", "f(x),é #1", "it's"])
def test_a_job_gets_the_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, manifest: Path, text: str
) -> None:
    """`mofore submit`: with the user's own folder the job gets the resolved configuration."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    overrides = [f"data.manifest={manifest}", f"run_dir={text}", f"data.split={text}"]
    monkeypatch.setattr("mofore.launch.tasks.check_first_video", lambda *_: None)
    for config_dir in (None, tmp_path / "own"):
        task = pretrain_task(overrides, [1], config_dir)
        job = compose(PretrainConfig, parse_command(task.argv).keys)
        assert (job.run_dir, job.data.split) == (str(tmp_path / text), text)
        assert task.run == tmp_path / text


@pytest.mark.parametrize("text", ["1e3", "a=b", "it's"])
def test_resume_passes_the_text_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    run = tmp_path / text
    run.mkdir()
    config = compose(PretrainConfig, [SET, f"run_dir={text}", f"data.split={text}"])
    write_config(config, run / "config.yaml")
    started: list[list[str]] = []
    monkeypatch.setattr(resume, "pretrain", lambda keys: started.append(keys) or 0)
    assert main(["resume", str(run), f"checkpoint.upload={text}"]) == 0
    again = compose(PretrainConfig, started[0])
    assert (again.run_dir, again.data.split, again.checkpoint.upload) == (str(run), text, text)


def test_values_of_a_sweep_arrive_as_typed() -> None:
    expected = ["1e3", "007", "null-", "it's", "a b"]
    combinations = expand_sweep([SET, f"data.split={', '.join(expected)}"])
    assert [varied for _, varied in combinations] == [[f"data.split={each}"] for each in expected]
    found = [compose(PretrainConfig, [*common, *varied]) for common, varied in combinations]
    assert [config.data.split for config in found] == expected


def test_quotes_keep_a_comma_in_a_sweep() -> None:
    assert split_options("data.split='a,b',c") == ["data.split='a,b'", "data.split=c"]
    assert expand_sweep(["data.split='a,b'", "seed=0,1"])[0] == (["data.split='a,b'"], ["seed=0"])
    assert split_options("data.split=f(x)") == ["data.split=f(x)"]


@pytest.mark.parametrize("text", ["f(a,b)", "[a,b]", "a,", ",a", "a,,b"])
def test_commas_that_are_ambiguous_in_a_sweep_are_named(text: str) -> None:
    with pytest.raises(UserError, match="which commas") as mistake:
        expand_sweep([f"data.split={text}", "seed=0,1"])
    assert quote_in_shell("data.split", text) in str(mistake.value)


def test_runs_of_a_sweep_have_folders_of_their_own(manifest: Path) -> None:
    with pytest.raises(UserError, match="run_dir has a comma"):
        expand_sweep(["run_dir=runs/a,b", "seed=0,1"])
    argv = ["backbone.pretrained_path=a/x.pth,b/x.pth", f"data.manifest={manifest}"]
    with pytest.raises(UserError, match="share a folder"):
        submit.submit(argv, multirun=True, dry_run=True)


def test_values_of_a_sweep_file_arrive_as_written(tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep/x.yaml").write_text(
        "data.split: [1e3, 007, \"a,b\", 'f(x)', null-]\nmicro_batch: [null, 2]\n"
        "optimizer.betas: [[0.5, 0.75], [0.5, 0.9]]\ndata.gap: [{min: 0.25, max: 1}]\n"
    )
    combinations = expand_sweep([SET, *sweep.read_sweep(["sweep=x"], tmp_path)])
    configs = [compose(PretrainConfig, [*common, *varied]) for common, varied in combinations]
    splits = ["1e3", "007", "a,b", "f(x)", "null-"]
    assert [config.data.split for config in configs[::4]] == splits
    assert [config.micro_batch for config in configs[:4]] == [None, None, 2, 2]
    assert [config.optimizer.betas for config in configs[:2]] == [[0.5, 0.75], [0.5, 0.9]]
    assert configs[0].data.gap.min == 0.25


@pytest.mark.parametrize(
    ("key", "written", "read"),
    [
        ("run_dir", "1e3", "1000.0"),
        ("run_dir", "20261127_153000", "20261127153000"),
        ("run_dir", "yes", "True"),
        ("cluster.time", "24:00:00", "86400"),
    ],
)
def test_a_yaml_file_that_loses_a_text_is_named(
    tmp_path: Path, key: str, written: str, read: str
) -> None:
    """The users' own files; in quotes the text arrives."""
    group, name = ("cluster", "time") if key.startswith("cluster") else ("experiment", key)
    kind, keys = (SubmitConfig, []) if group == "cluster" else (PretrainConfig, [SET])
    header = "" if group == "cluster" else "# @package _global_\n"
    path = tmp_path / group / "mine.yaml"
    path.parent.mkdir()
    path.write_text(f"{header}{name}: {written}\n")
    with pytest.raises(UserError, match=f'mine.yaml: {key}: {written} is a .*"{written}"') as fault:
        compose(kind, [*keys, f"{group}=mine"], tmp_path)
    assert f"({read})" in str(fault.value)
    path.write_text(f'{header}{name}: "{written}"\n')
    config = compose(kind, [*keys, f"{group}=mine"], tmp_path)
    assert flatten_dict(to_plain_dict(config))[key] == written


def test_numbers_in_a_yaml_file_that_keep_their_text_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster/mine.yaml").write_text("nodes: 1\ntime: 90\nname: 2.5\n")
    cluster = compose(SubmitConfig, ["cluster=mine"], tmp_path).cluster
    assert (cluster.nodes, cluster.time, cluster.name) == ("1", "90", "2.5")


@pytest.mark.parametrize("text", ["1e3", "1.5e3", "007", "a: b", "é"])
def test_a_printed_configuration_is_an_experiment(
    tmp_path: Path, capsys: pytest.CaptureFixture, text: str
) -> None:
    assert main(["config", SET, f"run_dir={text}"]) == 0
    (tmp_path / "experiment").mkdir()
    printed = f"# @package _global_\n{capsys.readouterr().out}"
    (tmp_path / "experiment/mine.yaml").write_text(printed, encoding="utf-8")
    assert compose(PretrainConfig, ["experiment=mine"], tmp_path).run_dir == text
