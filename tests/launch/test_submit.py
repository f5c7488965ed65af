"""What a submission plans: its tasks, the user's own configurations, the snapshot of the code."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mofore.config import PretrainConfig, compose, to_plain_dict
from mofore.errors import UserError
from mofore.launch import snapshot, submit, sweep, tasks
from mofore.launch.cli import main
from mofore.launch.cluster import compose_cluster
from mofore.launch.commands import parse_command
from tests.ranks import REPOSITORY
from tests.small import SMALL

MINE = "steps: 77\nglobal_batch: 6\n"


@pytest.fixture
def config_dir(tmp_path: Path, manifest: Path) -> Path:
    """A user's folder: an experiment on a backbone, a cluster and a sweep."""
    texts = {
        "experiment/mine.yaml": "# @package _global_\ndefaults:\n  - override /backbone: x\n"
        f"{MINE}data:\n  manifest: {manifest}\n",
        "backbone/x.yaml": "name: vit_tiny_patch16_224\ndepth: 3\n",
        "cluster/ours.yaml": "executor: slurm\naccount: lab\nprologue: |\n  module load cuda\n",
        "sweep/x.yaml": "backbone.depth: [1, 2]\n",
        "sweep/sizes.yaml": "seed: [5, 6]\n",
    }
    for name, text in texts.items():
        path = tmp_path / "own" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "own"


def dry_run(argv: list[str], capsys: pytest.CaptureFixture) -> str:
    assert main(["submit", *argv, "--dry-run"]) == 0
    return capsys.readouterr().out


def planned(output: str) -> tuple[list[str], dict]:
    """(argv of the job's command, its resolved configuration), from the output of a dry run."""
    text = output[output.index("# mofore ") :]
    command, _, config = text.partition("\n")
    split = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {command.removeprefix('# mofore ')}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return split.stdout.split("\0")[:-1], yaml.safe_load(config)


@pytest.mark.parametrize(
    "argv",
    [
        ["cluster=slurm", "cluster.nodes=1-2", "run_dir=runs/a", "steps=3"],
        ["pretrain", "cluster=local", "run_dir=runs/a"],
        ["evaluate", "runs/a", "views=8", "cluster=slurm", "cluster.gpus_per_node=4"],
        ["cluster=slurm", "run_dir=runs/a", "seed=0,1", "--multirun"],
    ],
)
def test_mofore_submit_is_the_script(
    argv: list[str], manifest: Path, capsys: pytest.CaptureFixture
) -> None:
    keys = [] if "evaluate" in argv else [f"data.manifest={manifest}"]
    of_command = dry_run([*argv, *keys], capsys)
    assert submit.main([*argv, *keys, "--dry-run"]) == 0
    assert capsys.readouterr().out == of_command
    assert "# mofore " in of_command


def test_script_in_a_checkout(manifest: Path, capsys: pytest.CaptureFixture) -> None:
    keys = ["cluster=slurm", "cluster.nodes=2", f"data.manifest={manifest}", "run_dir=/runs/a"]
    command = [sys.executable, "launch/submit.py", *keys, "--dry-run"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == dry_run(keys, capsys)


def test_pretrain_is_the_default_task(manifest: Path, capsys: pytest.CaptureFixture) -> None:
    keys = [f"data.manifest={manifest}", "steps=3"]
    assert dry_run(keys, capsys) == dry_run(["pretrain", *keys], capsys)


def test_paths_of_a_task_hold_anywhere(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    relative = os.path.relpath(manifest)
    argv, config = planned(dry_run([f"data.manifest={relative}", "run_dir=a"], capsys))
    monkeypatch.chdir("/")
    job = compose(PretrainConfig, parse_command(argv).keys)
    assert Path(job.run_dir) == tmp_path / "a"
    assert job.data.manifest == f"{tmp_path}/{relative}"
    assert config["run_dir"] == "a"


def test_evaluate_takes_one_task_and_one_gpu(capsys: pytest.CaptureFixture) -> None:
    cluster = ["cluster=slurm", "cluster.nodes=2", "cluster.gpus_per_node=8"]
    output = dry_run([*cluster, "evaluate", "runs/a", "views=8"], capsys)
    for line in ("--nodes=1", "--ntasks-per-node=1", "--gpus-per-node=1"):
        assert f"#SBATCH {line}\n" in output
    argv, config = planned(output)
    assert argv == ["evaluate", str(Path("runs/a").absolute()), "views=8"]
    assert config["views"] == 8


def test_prepare_parses_its_own_flags(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    flags = ["--out", str(tmp_path / "data"), "--split", "a", "b"]
    output = dry_run(["prepare", str(tmp_path), *flags, "cluster=slurm"], capsys)
    argv, config = planned(output)
    assert argv == ["prepare", str(tmp_path), *flags]
    assert config["split"] == ["a", "b"]
    assert set(config) == {
        *("root", "out", "listing", "split", "classes", "groups", "workers", "timeout"),
        *("decoders", "max_bad_share"),
    }


def test_config_prints_yaml_that_composes(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    keys = ["experiment=demo", f"data.manifest={manifest}", "optimizer.betas=[0.5,0.75]"]
    assert main(["config", *keys]) == 0
    text = capsys.readouterr().out
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/printed.yaml").write_text(f"# @package _global_\n{text}")
    config = compose(PretrainConfig, ["experiment=printed"], tmp_path)
    assert config == compose(PretrainConfig, keys)
    assert yaml.safe_load(text) == to_plain_dict(config)


def test_config_needs_no_manifest(capsys: pytest.CaptureFixture) -> None:
    """It is the only key without a default, and marked as missing."""
    assert main(["config"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["data"]["manifest"] == "???"
    assert config["steps"] == 10000


def test_own_experiment(config_dir: Path, capsys: pytest.CaptureFixture) -> None:
    own = ["--config-dir", str(config_dir)]
    assert main(["config", "experiment=mine", "seed=3", *own]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert (config["steps"], config["global_batch"], config["seed"]) == (77, 6, 3)
    assert config["backbone"]["depth"] == 3
    assert main(["config", "experiment=mine"]) == 2
    assert "experiment/mine" in capsys.readouterr().err
    assert main(["config", "experiment=demo", *own]) == 0  # MoFore's are still found


def test_own_experiment_trains(
    config_dir: Path, manifest: Path, tmp_path: Path, environment: None
) -> None:
    run = tmp_path / "run"
    keys = [*SMALL, "experiment=mine", "steps=2", f"run_dir={run}"]
    assert main(["pretrain", *keys, "--config-dir", str(config_dir)]) == 0
    written = yaml.safe_load((run / "config.yaml").read_text())
    assert (written["steps"], written["data"]["manifest"]) == (2, str(manifest))


def test_job_has_the_resolved_configuration(
    config_dir: Path, capsys: pytest.CaptureFixture
) -> None:
    """A job with --config-dir runs what was checked, even if the folder is gone."""
    keys = ["experiment=mine", "cluster=ours", "run_dir=runs/a"]
    output = dry_run([*keys, "--config-dir", str(config_dir)], capsys)
    assert "#SBATCH --account=lab" in output
    assert "\nmodule load cuda\n" in output
    for path in config_dir.rglob("*.yaml"):
        path.unlink()
    argv, config = planned(output)
    arguments = parse_command(argv)
    assert arguments.config_dir is None
    job = compose(PretrainConfig, arguments.keys)
    expected = config | {"run_dir": str(Path("runs/a").absolute())}
    assert to_plain_dict(job) == expected
    assert (job.steps, job.backbone.depth) == (77, 3)


def test_cluster_of_a_submission_is_recorded_resolved(
    config_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that `mofore resume` needs no --config-dir."""
    requests = []
    monkeypatch.setattr(submit, "submit_slurm", lambda request, _: [requests.append(request)])
    argv = ["experiment=mine", "cluster=ours", f"run_dir={tmp_path / 'run'}"]
    assert submit.submit(argv, config_dir=config_dir) == 0
    (request,) = requests
    assert compose_cluster(request.cluster_overrides) == request.cluster
    assert request.cluster.prologue == "module load cuda\n"


def test_own_sweep(config_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    keys = ["experiment=mine", "cluster=ours", f"run_dir={tmp_path / 'runs'}", "sweep=x"]
    output = dry_run([*keys, "--config-dir", str(config_dir)], capsys)
    runs = [line for line in output.splitlines() if line.startswith("runs=(")]
    (line,) = runs
    assert line.count("backbone.depth=") == 2
    assert output.count("# mofore pretrain ") == 2
    assert "depth: 1\n" in output
    assert "depth: 2\n" in output


def test_own_sweep_comes_first(config_dir: Path) -> None:
    assert sweep.read_sweep(["sweep=sizes"], config_dir) == ["seed=5,6"]
    assert sweep.read_sweep(["a=1", "sweep=sizes"])[0] == "a=1"
    with pytest.raises(UserError, match="sweep=nowhere: .* sizes, x"):
        sweep.read_sweep(["sweep=nowhere"], config_dir)


def test_url_of_a_manifest_is_unchanged() -> None:
    assert tasks.absolute_path("s3://bucket/a") == "s3://bucket/a"
    assert tasks.absolute_path("a") == str(Path("a").absolute())


def test_snapshot_is_a_whole_package(tmp_path: Path) -> None:
    """A job imports mofore.launch, .evaluation and .configs from it; it has no symlinks."""
    code = snapshot.take_snapshot(tmp_path)
    assert snapshot.take_snapshot(tmp_path) == code
    assert [path.name for path in (tmp_path / "code").iterdir()] == [code.name]
    assert not [path for path in code.rglob("*") if path.is_symlink()]
    assert not list(code.rglob("__pycache__"))
    script = (
        "import mofore.config, mofore.launch.job, mofore.evaluation.config, json\n"
        "from mofore.run_folder import code_commit\n"
        "files = [mofore.launch.job.__file__, mofore.evaluation.config.__file__]\n"
        "print(json.dumps([*files, str(mofore.config.CONFIG_DIR), code_commit()]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(code), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    *paths, commit = json.loads(done.stdout)
    assert all(path.startswith(f"{code}/mofore/") for path in paths)
    assert json.loads((code / "snapshot.json").read_text()) == {"commit": commit}
