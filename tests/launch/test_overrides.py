"""Overrides as text: whatever characters a value has, it is read back."""

import pytest

from mofore.config import PretrainConfig, compose
from mofore.evaluation.config import EvaluateConfig
from mofore.launch.cluster import ClusterConfig, cluster_overrides_of, compose_cluster
from mofore.launch.overrides import overrides_of, split_overrides, to_override

TEXTS = (
    "a b",
    "it's",
    '"q"',
    "",
    " padded ",
    "null",
    "true",
    "1e3",
    "a,b=c",
    "[1,2]",
    "back\\slash",
    "\\'",
    "end\\",
    "end\\\\",
    "line\nbreak\n",
    "$(pwd) $X ${HOME} {b}",
    "\\${a}",
    "\\\\${a}'",
    "naïve",
)


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_is_read_back(text: str) -> None:
    assert compose(EvaluateConfig, [to_override("run", text)]).run == text


@pytest.mark.parametrize("text", TEXTS)
def test_shell_lines_of_a_cluster_are_literal(text: str) -> None:
    cluster = compose_cluster([f"cluster.prologue={text}", "cluster.name=mine"])
    assert cluster.prologue == text


def test_a_configuration_is_its_overrides() -> None:
    manifest = to_override("data.manifest", "it's")
    config = compose(PretrainConfig, ["experiment=paper", manifest, "optimizer.betas=[0.5,0.75]"])
    assert compose(PretrainConfig, overrides_of(config)) == config


def test_a_cluster_is_its_overrides() -> None:
    cluster = ClusterConfig(
        executor="slurm",
        nodes="1-4",
        mem="64G",
        account="it's",
        sbatch_args="--nice=10 --comment='a b'",
        prologue="module load cuda\nexport A='b' C=${D}\n",
    )
    assert compose_cluster(cluster_overrides_of(cluster)) == cluster


def test_split() -> None:
    words = ["a=1", "cluster=slurm", "b=2", "cluster.nodes=2"]
    assert split_overrides(words) == (["cluster=slurm", "cluster.nodes=2"], ["a=1", "b=2"])
