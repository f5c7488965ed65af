"""config: every YAML composes and builds, mistakes are named, and what is written is read back."""

import re
from pathlib import Path

import pytest
import torch

from mofore.config import (
    CONFIG_DIR,
    PretrainConfig,
    compose,
    expand_sweep,
    flatten_dict,
    read_config,
    to_plain_dict,
    write_config,
)
from mofore.config_help import describe_keys
from mofore.errors import UserError
from mofore.evaluation.config import EvaluateConfig
from mofore.launch.cluster import SubmitConfig
from mofore.models.encoder import VideoEncoder
from mofore.models.objective import build_pretraining

SET = "data.manifest=somewhere"


def names(folder: str) -> list[str]:
    return sorted(path.stem for path in (CONFIG_DIR / folder).glob("*.yaml"))


def test_every_yaml_is_covered_here():
    folders = {path.parent.name for path in CONFIG_DIR.rglob("*.yaml")}
    assert folders == {CONFIG_DIR.name, "backbone", "experiment", "cluster", "sweep"}
    assert names(".") == ["evaluate", "pretrain", "submit"]


@pytest.mark.parametrize("name", names("backbone"))
def test_every_backbone_builds(name):
    """At full width with one block: the largest have two billion parameters."""
    side = 2 * compose(PretrainConfig, [SET, f"backbone={name}"]).backbone.patch_size
    config = compose(
        PretrainConfig, [SET, f"backbone={name}", f"data.size={side}", "backbone.depth=1"]
    )
    encoder = VideoEncoder(config.backbone, config.data.frames, side)
    tokens = encoder(torch.zeros(1, 3, config.data.frames, side, side, dtype=torch.uint8))
    assert tokens.shape == (1, 4 * config.data.frames // config.backbone.tubelet_size, WIDTHS[name])


WIDTHS = {
    "micro": 96,
    "compact": 192,
    "vit_tiny": 192,
    "vit_small": 384,
    "vit_base": 768,
    "vit_base_reg4": 768,
    "vit_large": 1024,
    "vit_huge": 1280,
    "vit_giant": 1408,
    "vit_gigantic": 1664,
}


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
    flat = flatten_dict(to_plain_dict(config))
    published = {
        "backbone.attention": "per_frame",
        "backbone.tubelet_size": 1,
        "forecaster.kind": "mlp",
        "teacher.momentum": 0.7,
        "teacher.final_momentum": 0.7,
        "optimizer.kind": "adam",
        "optimizer.lr": 1e-4,
        "optimizer.final_lr": 1e-4,
        "optimizer.warmup_steps": 0,
        "optimizer.weight_decay": 0,
        "optimizer.betas": [0.9, 0.999],
        "optimizer.clip_grad": 0,
        "loss.regression": "mse",
        "loss.normalise_targets": False,
        "global_batch": 8,
        "data.targets": 1,
        "data.split": "train",
        "data.gap.distribution": "uniform",
    }
    assert {key: flat[key] for key in published} == published
    assert config.loss.contrastive_weight > 0
    message = (CONFIG_DIR / "experiment" / "paper.yaml").read_text()
    assert "Not published, chosen here" in message


def test_an_experiment_gives_way_to_the_command():
    overrides = [SET, "experiment=demo", "backbone=vit_tiny", "data.size=64", "data.gap.max=0.75"]
    config = compose(PretrainConfig, overrides)
    assert (config.backbone.embed_dim, config.data.size, config.data.gap.max) == (None, 64, 0.75)
    assert config.data.frames == compose(PretrainConfig, [SET, "experiment=demo"]).data.frames


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "data.manifest is not set"),
        ([SET, "stepz=3"], "stepz.*Did you mean steps"),
        ([SET, "data.gap.mim=3"], "data.gap.mim.*Did you mean data.gap.min"),
        ([SET, "+new=3"], r"\+new=3: write KEY=VALUE with an existing key"),
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
        ([SET, "engine.precision=fp8"], "engine.precision.*fp8.*fp32, tf32, bf16"),
        ([SET, "backbone=vit_tinny"], "backbone/vit_tinny.*vit_tiny"),
        ([SET, "experiment=none"], "experiment/none.*paper"),
        ([SET, "seed=-1"], "seed=-1"),
        ([SET, "steps=0"], "steps=0"),
        ([SET, "workers=-1"], "workers=-1"),
        ([SET, "workers=many"], "workers=many.*auto"),
        ([SET, "workers=1.5"], "workers.*1.5"),
        ([SET, "global_batch=1"], "global_batch=1"),
        ([SET, "data.size=100"], "data.size.*backbone.patch_size"),
        ([SET, "data.frames=15"], "data.frames.*backbone.tubelet_size"),
        ([SET, "teacher.momentum=1.2"], "teacher.*momentum"),
        ([SET, "engine.zero_stage=4"], "engine.zero_stage=4"),
        ([SET, "engine.timeout=0"], "engine.timeout=0"),
        ([SET, "checkpoint.every=0"], "checkpoint.every=0"),
        ([SET, "checkpoint.keep_last=0"], "checkpoint.keep_last=0"),
        ([SET, "optimizer.kind=adam"], "optimizer.weight_decay.*adam"),
        ([SET, "optimizer.lr=0"], "optimizer.*lr"),
        ([SET, "loss.temperature=0"], "loss.temperature=0"),
        ([SET, "data.gap.min=2"], "data.gap"),
        ([SET, "data.gap.distribution=log_uniform"], "data.gap.min"),
        ([SET, "data.augment.crop_min_area=0"], "data.augment.crop_min_area=0"),
    ],
)
def test_mistakes_are_named(overrides, message):
    with pytest.raises(UserError, match=message) as mistake:
        compose(PretrainConfig, overrides)
    assert "\n" not in str(mistake.value)


@pytest.mark.parametrize(
    ("kind", "overrides", "message"),
    [
        (EvaluateConfig, [], "run is not set"),
        (EvaluateConfig, ["run=x", "views=1"], "views=1"),
        (EvaluateConfig, ["run=x", "knn_k=0"], "knn_k=0.*at least 1"),
        (EvaluateConfig, ["run=x", "veiws=3"], "veiws.*Did you mean views"),
        (SubmitConfig, ["cluster=moon"], "cluster/moon.*debug local"),
        (SubmitConfig, ["cluster.tasks=2"], "cluster.tasks"),
        (SubmitConfig, ["cluster.tasks_per_node=two"], "cluster.tasks_per_node.*two"),
        (SubmitConfig, ["cluster.tasks_per_node=0"], "tasks_per_node"),
        (SubmitConfig, ["cluster.executor=moon"], "cluster.executor=moon"),
        (SubmitConfig, ["cluster=debug", "cluster.tasks_per_node=2"], "cluster=debug"),
    ],
)
def test_mistakes_in_other_configurations_are_named(kind, overrides, message):
    with pytest.raises(UserError, match=message):
        compose(kind, overrides)


@pytest.mark.parametrize(
    ("batch", "micro", "world", "cut"),
    [(8, None, 1, (8, 1)), (8, 2, 2, (2, 2)), (8, None, 4, (2, 1))],
)
def test_a_global_batch_is_cut(batch, micro, world, cut):
    overrides = [SET, f"global_batch={batch}", f"micro_batch={'null' if micro is None else micro}"]
    assert compose(PretrainConfig, overrides).split_batch(world) == cut


@pytest.mark.parametrize(
    ("batch", "micro", "world"), [(8, 3, 1), (9, "null", 2), (2, "null", 4), (8, 0, 1)]
)
def test_a_global_batch_that_does_not_divide_is_named(batch, micro, world):
    config = compose(PretrainConfig, [SET, f"global_batch={batch}", f"micro_batch={micro}"])
    with pytest.raises(UserError, match=f"global_batch={batch}.* {world} rank"):
        config.split_batch(world)


@pytest.mark.parametrize(
    "overrides", [[], ["experiment=paper"], ["experiment=demo", "optimizer.betas=[0.5,0.6]"]]
)
def test_what_is_written_is_read_back(tmp_path, overrides):
    config = compose(PretrainConfig, [SET, *overrides])
    write_config(config, tmp_path / "config.yaml")
    assert read_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("text", "message"),
    [("stepz: 3", "config.yaml.*stepz"), ("steps: many", "config.yaml.*steps.*many")],
)
def test_a_config_file_that_does_not_fit_is_named(tmp_path, text, message):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_config(tmp_path / "config.yaml")


def test_a_folder_without_config_is_no_run(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path} is not a run folder"):
        read_config(Path(tmp_path) / "config.yaml")


@pytest.mark.parametrize("kind", [PretrainConfig, EvaluateConfig, SubmitConfig])
def test_every_key_is_described(kind):
    """`--help` has a line for each key, with its type, its default and a sentence."""
    lines = describe_keys(kind).splitlines()
    start = {name: lines[0].index(name) for name in ("type", "default", "description")}
    rows = {line.split()[0]: line for line in lines[1:] if line.strip()}
    for key in flatten_dict(to_plain_dict(kind())):
        assert rows[key][start["type"] :].strip()
        description = rows[key][start["description"] :]
        assert re.fullmatch(r"\S.{10,}\.", description), (key, description)


def test_the_users_folder_is_searched_first(tmp_path):
    """Own experiments and backbones lie beside the user's project; MoFore's own ones stay
    available.
    """
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nsteps: 7\n")
    (tmp_path / "backbone").mkdir()
    (tmp_path / "backbone" / "micro.yaml").write_text("name: vit_tiny_patch16_224\ndepth: 3\n")
    config = compose(PretrainConfig, [SET, "experiment=mine", "backbone=micro"], tmp_path)
    assert (config.steps, config.backbone.depth) == (7, 3)
    assert compose(PretrainConfig, [SET, "experiment=demo"], tmp_path).steps == 1500
    with pytest.raises(UserError, match="experiment/mime.*mine"):
        compose(PretrainConfig, [SET, "experiment=mime"], tmp_path)
    with pytest.raises(UserError, match="stepz.*Did you mean steps"):
        compose(PretrainConfig, [SET, "stepz=3"], tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        compose(PretrainConfig, [SET], tmp_path / "nothing")
    assert "mine" in describe_keys(PretrainConfig, tmp_path)


def test_a_sweep_expands_to_every_combination():
    with pytest.raises(UserError, match="several values"):
        expand_sweep(["steps=3"])
    assert expand_sweep(["steps=3", "seed=0,1"]) == [
        (["steps=3"], ["seed=0"]),
        (["steps=3"], ["seed=1"]),
    ]
