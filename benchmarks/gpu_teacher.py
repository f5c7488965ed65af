"""Part of benchmarks.gpu: the teacher's share of a step."""

import argparse

import torch

from benchmarks.gpu_measure import describe_machine, step_shape, time_calls
from benchmarks.gpu_results import Column, Report
from benchmarks.training_step import RepeatedStep
from mofore.flops import flops_per_video
from mofore.profiling import random_batch

SECONDS = 1.0  # of timed steps, per row
EAGER = ("engine.precision=bf16", "engine.compile=never")
# data.token_keep_ratio and teacher.token_keep_ratio
RATIOS = [(0.5, 1.0), (0.5, 0.5), (0.5, 0.25), (0.25, 1.0), (0.25, 0.25), (0.1, 0.25), (0.05, 0.25)]


def teacher(options: argparse.Namespace, report: Report) -> None:
    """The teacher's share of a step, by the tokens that student and teacher see; bf16, eager."""
    device, shape = torch.device(options.device), step_shape(options)
    shape = shape._replace(batch=max(2, shape.batch // 2))
    seconds = 0.0 if options.tiny else SECONDS
    report.environment(describe_machine(device))
    step = RepeatedStep(shape.config(*EAGER))
    report.note(f"{shape.backbone}, {shape.batch} videos, bf16, not compiled")
    report.table(
        Column("student", "student's tokens", 16, ".0%"),
        Column("teacher", "teacher's tokens", 16, ".0%"),
        Column("samples_per_second", "samples/s", 9, ".1f"),
        Column("speed", "x default", 9, ".2f"),
        Column("teacher_ms", "teacher ms", 10, ".1f"),
        Column("share", "of the step", 11, ".0%"),
        Column("flops_share", "of its FLOPs", 12, ".0%"),
    )
    first = 0.0
    for student_ratio, teacher_ratio in RATIOS:
        config = shape.config(
            *EAGER,
            f"data.token_keep_ratio={student_ratio}",
            f"teacher.token_keep_ratio={teacher_ratio}",
        )
        step.batch = random_batch(config, config.global_batch, device)
        whole = time_calls(step, device, seconds).seconds
        alone = time_calls(lambda: _teacher_pass(step), device, seconds).seconds
        flops, first = flops_per_video(config), first or whole
        report.row(
            student=student_ratio,
            teacher=teacher_ratio,
            samples_per_second=shape.batch / whole,
            speed=first / whole,
            teacher_ms=1000 * alone,
            share=alone / whole,
            flops_share=flops.teacher / flops.total,
        )


@torch.no_grad()
def _teacher_pass(step: RepeatedStep) -> object:
    return step.engine(step.batch)
