"""config: every YAML composes and builds, mistakes are named, and what is written is read back."""

from pathlib import Path

import pytest
import torch

from launch.submit import SubmitConfig
from mofore.config import (
    FOLDER,
    EvaluateConfig,
    PretrainConfig,
    asdict_plain,
    compose,
    describe,
    flatten,
    read_config,
    write_config,
)
from mofore.errors import UserError
from mofore.models.encoder import VideoEncoder
from mofore.pretraining import build_pretraining

SET = "data.manifest=somewhere"


def names(folder: str) -> list[str]:
    return sorted(path.stem for path in (FOLDER / folder).glob("*.yaml"))


def test_every_yaml_is_covered_here():
    folders = {path.parent.name for path in FOLDER.rglob("*.yaml")}
    assert folders == {FOLDER.name, "backbone", "experiment", "cluster", "sweep"}
    assert names(".") == ["evaluate", "pretrain", "submit"]


@pytest.mark.parametrize("name", names("backbone"))
def test_every_backbone_builds(name):
    """At full width with one block: the largest have two billion parameters."""
    side = 2 * compose(PretrainConfig, [SET, f"backbone={name}"]).backbone.patch
    config = compose(PretrainConfig, [SET, f"backbone={name}", f"data.size={side}", "backbone.depth=1"])
    encoder = VideoEncoder(config.backbone, config.data.frames, side)
    tokens = encoder(torch.zeros(1, 3, config.data.frames, side, side, dtype=torch.uint8))
    assert tokens.shape == (1, 4 * config.data.frames // config.backbone.tubelet, WIDTHS[name])


WIDTHS = {"micro": 96, "compact": 192, "vit_tiny": 192, "vit_small": 384, "vit_base": 768, "vit_base_reg4": 768,
          "vit_large": 1024, "vit_huge": 1280, "vit_giant": 1408, "vit_gigantic": 1664}  # fmt: skip


@pytest.mark.parametrize("name", names("experiment"))
def test_every_experiment_builds(name):
    model = build_pretraining(compose(PretrainConfig, [SET, f"experiment={name}"]).model(), seed=0)
    assert sum(p.numel() for p in model.student.parameters()) < 30e6


@pytest.mark.parametrize("name", names("cluster"))
def test_every_cluster_composes(name):
    assert compose(SubmitConfig, [f"cluster={name}"]).cluster.executor


def test_the_paper_is_as_published():
    """arXiv 2606.14765: what the paper states, and nothing that it does not know of."""
    config = compose(PretrainConfig, [SET, "experiment=paper"])
    flat = flatten(asdict_plain(config))
    published = {
        "backbone.attention": "per_frame", "backbone.tubelet": 1, "forecaster.kind": "mlp",
        "teacher.momentum": 0.7, "teacher.final_momentum": 0.7, "optimizer.kind": "adam",
        "optimizer.lr": 1e-4, "optimizer.final_lr": 1e-4, "optimizer.warmup": 0, "optimizer.weight_decay": 0,
        "optimizer.betas": [0.9, 0.999], "optimizer.clip": 0, "loss.regression": "mse",
        "loss.normalise_targets": False, "global_batch": 8, "data.targets": 1, "data.split": "train",
        "data.gap.law": "uniform",
    }  # fmt: skip
    assert {key: flat[key] for key in published} == published
    assert config.loss.contrast > 0
    said = (FOLDER / "experiment" / "paper.yaml").read_text()
    assert "Not published, chosen here" in said


def test_an_experiment_gives_way_to_the_command():
    words = [SET, "experiment=demo", "backbone=vit_tiny", "data.size=64", "data.gap.max=0.75"]
    config = compose(PretrainConfig, words)
    assert (config.backbone.embed_dim, config.data.size, config.data.gap.max) == (None, 64, 0.75)
    assert config.data.frames == compose(PretrainConfig, [SET, "experiment=demo"]).data.frames


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "data.manifest is not set"),
        ([SET, "stepz=3"], "stepz.*Did you mean steps"),
        ([SET, "data.gap.mim=3"], "data.gap.mim.*Did you mean data.gap.min"),
        ([SET, "+new=3"], r"\+new=3: write KEY=VALUE with a key that exists"),
        ([SET, "~steps"], "~steps"),
        ([SET, "=3"], "=3"),
        ([SET, "steps"], "steps"),
        ([SET, "steps=many"], "steps.*many.*Integer"),
        ([SET, "steps=null"], "steps"),
        ([SET, "data=3"], "data.*DataConfig"),
        ([SET, "data.fps=fast"], "data.fps.*fast"),
        ([SET, "optimizer.betas=[0.9,x]"], "optimizer.betas.*x"),
        ([SET, "optimizer.betas=[0.9]"], "optimizer.betas"),
        ([SET, "loss.regression=l3"], "loss.regression.*l3.*mse, smooth_l1"),
        ([SET, "engine.precision=fp8"], "engine.precision.*fp8.*fp32, bf16"),
        ([SET, "backbone=vit_tinny"], "backbone/vit_tinny.*vit_tiny"),
        ([SET, "experiment=none"], "experiment/none.*paper"),
        ([SET, "seed=-1"], "seed=-1"),
        ([SET, "steps=0"], "steps=0"),
        ([SET, "workers=-1"], "workers=-1"),
        ([SET, "global_batch=1"], "global_batch=1"),
        ([SET, "data.size=100"], "data.size.*backbone.patch"),
        ([SET, "data.frames=15"], "data.frames.*backbone.tubelet"),
        ([SET, "teacher.momentum=1.2"], "teacher.*momentum"),
        ([SET, "engine.zero=4"], "engine.zero=4"),
        ([SET, "engine.timeout=0"], "engine.timeout=0"),
        ([SET, "checkpoint.every=0"], "checkpoint.every=0"),
        ([SET, "checkpoint.keep_last=0"], "checkpoint.keep_last=0"),
        ([SET, "optimizer.kind=adam"], "optimizer.weight_decay.*adam"),
        ([SET, "optimizer.lr=0"], "optimizer.*lr"),
        ([SET, "loss.temperature=0"], "loss.temperature=0"),
        ([SET, "data.gap.min=2"], "data.gap"),
        ([SET, "data.gap.law=log_uniform"], "data.gap.min"),
        ([SET, "data.augment.crop=0"], "data.augment.crop=0"),
    ],
)
def test_mistakes_are_named(words, said):
    with pytest.raises(UserError, match=said) as mistake:
        compose(PretrainConfig, words)
    assert "\n" not in str(mistake.value)


@pytest.mark.parametrize(
    ("kind", "words", "said"),
    [
        (EvaluateConfig, [], "run is not set"),
        (EvaluateConfig, ["run=x", "views=1"], "views=1"),
        (EvaluateConfig, ["run=x", "k=0"], "k.*at least 1"),
        (EvaluateConfig, ["run=x", "veiws=3"], "veiws.*Did you mean views"),
        (SubmitConfig, ["cluster=moon"], "cluster/moon.*debug local"),
        (SubmitConfig, ["cluster.tasks=2"], "cluster.tasks"),
        (SubmitConfig, ["cluster.tasks_per_node=two"], "cluster.tasks_per_node.*two"),
        (SubmitConfig, ["cluster.tasks_per_node=0"], "tasks_per_node"),
        (SubmitConfig, ["cluster.executor=moon"], "cluster.executor=moon"),
        (SubmitConfig, ["cluster=debug", "cluster.tasks_per_node=2"], "cluster=debug"),
    ],
)
def test_mistakes_in_other_configurations_are_named(kind, words, said):
    with pytest.raises(UserError, match=said):
        compose(kind, words)


@pytest.mark.parametrize(
    ("batch", "micro", "world", "cut"), [(8, None, 1, (8, 1)), (8, 2, 2, (2, 2)), (8, None, 4, (2, 1))]
)
def test_a_global_batch_is_cut(batch, micro, world, cut):
    words = [SET, f"global_batch={batch}", f"micro_batch={'null' if micro is None else micro}"]
    assert compose(PretrainConfig, words).cut_batch(world) == cut


@pytest.mark.parametrize(("batch", "micro", "world"), [(8, 3, 1), (9, "null", 2), (2, "null", 4), (8, 0, 1)])
def test_a_global_batch_that_does_not_divide_is_named(batch, micro, world):
    config = compose(PretrainConfig, [SET, f"global_batch={batch}", f"micro_batch={micro}"])
    with pytest.raises(UserError, match=f"global_batch={batch}.* {world} rank"):
        config.cut_batch(world)


@pytest.mark.parametrize(
    "words", [[], ["experiment=paper"], ["experiment=demo", "optimizer.betas=[0.5,0.6]"]]
)
def test_what_is_written_is_read_back(tmp_path, words):
    config = compose(PretrainConfig, [SET, *words])
    write_config(config, tmp_path / "config.yaml")
    assert read_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("text", "said"), [("stepz: 3", "config.yaml.*stepz"), ("steps: many", "config.yaml.*steps.*many")]
)
def test_a_config_file_that_does_not_fit_is_named(tmp_path, text, said):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=said):
        read_config(tmp_path / "config.yaml")


def test_a_folder_without_config_is_no_run(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path} is no run folder"):
        read_config(Path(tmp_path) / "config.yaml")


@pytest.mark.parametrize("kind", [PretrainConfig, EvaluateConfig])
def test_every_key_is_described(kind):
    lines = describe(kind).splitlines()
    keys = flatten(asdict_plain(kind()))
    described = {line.split()[0] for line in lines if line.strip()}
    assert set(keys) <= described
