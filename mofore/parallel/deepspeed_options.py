"""`engine.deepspeed.KEY=value`: DeepSpeed's own options, merged into our configuration of it.

Options that would break the teacher's update, the checkpoint or a key of ours are refused.
"""

from typing import Any

from mofore.errors import UserError

OWN_KEY = "MoFore sets it; give {} instead"
SHARDS = "it shards or stores the weights in a way that the teacher's update and checkpoints miss"
ALL_SHARDED = "the teacher's update runs on shards, so every tensor is sharded"
REFUSED = {
    "train_batch_size": OWN_KEY.format("global_batch"),
    "train_micro_batch_size_per_gpu": OWN_KEY.format("micro_batch"),
    "gradient_accumulation_steps": OWN_KEY.format("micro_batch"),
    "gradient_clipping": OWN_KEY.format("optimizer.clip_grad"),
    "optimizer": OWN_KEY.format("optimizer.kind"),
    "scheduler": OWN_KEY.format("optimizer.warmup_steps and optimizer.final_lr"),
    "torch_autocast": OWN_KEY.format("engine.precision"),
    "bf16": "it keeps the weights in bf16, where the teacher's average stands still; give "
    "engine.precision=bf16 instead",
    "fp16": "it scales the loss and keeps the weights in fp16; give engine.precision=bf16 instead",
    "amp": "DeepSpeed no longer has it; give engine.precision=bf16 instead",
    "compile": OWN_KEY.format("engine.compile"),
    "data_types": "gradients are accumulated and reduced in fp32 at every ZeRO stage",
    "communication_data_type": "gradients are reduced in fp32 at every ZeRO stage",
    "sparse_gradients": "the model has no sparse gradients",
    "zero_optimization.stage": OWN_KEY.format("engine.zero_stage"),
    "zero_optimization.compute_grad_norm": "MoFore computes the norm where DeepSpeed does not",
    "zero_optimization.zero_hpz_partition_size": "the secondary shards of hpZeRO would not see the "
    "teacher's update",
    "zero_optimization.mics_shard_size": SHARDS,
    "zero_optimization.mics_hierarchical_params_gather": SHARDS,
    "zero_optimization.offload_param": SHARDS,
    "zero_optimization.cpu_offload_param": SHARDS,
    "zero_optimization.zenflow": SHARDS,
    "zero_optimization.elastic_checkpoint": SHARDS,
    "zero_optimization.zero_quantized_weights": "it rounds the weights that ranks exchange",
    "zero_optimization.zero_quantized_nontrainable_weights": "it rounds the teacher's weights",
    "zero_optimization.zero_quantized_gradients": "it rounds the gradients that ranks exchange",
    "zero_optimization.stage3_param_persistence_threshold": ALL_SHARDED,
    "zero_optimization.param_persistence_threshold": ALL_SHARDED,
}
OFFLOAD = "zero_optimization.offload_optimizer"


def check_options(options: dict[str, Any], zero_stage: int) -> None:
    """Raise UserError for an option that MoFore refuses, naming it with the reason."""
    for name in _names(options, ""):
        if name in REFUSED:
            raise UserError(f"engine.deepspeed.{name} is refused: {REFUSED[name]}.")
    zero = options.get("zero_optimization", {})
    if not isinstance(zero, dict):
        raise UserError(
            f"engine.deepspeed.zero_optimization={zero!r}: give its keys, such as "
            "engine.deepspeed.zero_optimization.overlap_comm=false."
        )
    if "offload_optimizer" not in zero:
        return
    if zero_stage == 0:
        raise UserError(
            f"engine.deepspeed.{OFFLOAD} needs engine.zero_stage=1, 2 or 3: stage 0 has no shards."
        )
    device = zero["offload_optimizer"].get("device")
    if device != "cpu":
        raise UserError(
            f"engine.deepspeed.{OFFLOAD}.device={device}: MoFore supports cpu; NVMe files are not "
            "in its checkpoints."
        )


def offloads_optimizer(options: dict[str, Any]) -> bool:
    return "offload_optimizer" in options.get("zero_optimization", {})


def merge_options(settings: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """The settings with the user's options in place of ours, key by key."""
    merged = dict(settings)
    for key, value in options.items():
        both_nested = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge_options(merged[key], value) if both_nested else value
    return merged


def _names(options: dict[str, Any], prefix: str) -> list[str]:
    """Dotted names of all keys, of the groups too."""
    names = []
    for key, value in options.items():
        names.append(f"{prefix}{key}")
        if isinstance(value, dict):
            names += _names(value, f"{prefix}{key}.")
    return names
