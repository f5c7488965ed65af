"""The configuration of an evaluation."""

from dataclasses import dataclass

from omegaconf import MISSING

from mofore.data.loader import AUTO, check_workers
from mofore.errors import UserError
from mofore.precision import Precision
from mofore.settings import setting


@dataclass
class EvaluateConfig:
    """An evaluation of a run's newest checkpoint: `mofore evaluate RUN [KEY=VALUE ...]`."""

    run: str = setting(MISSING, "Run folder whose newest checkpoint is evaluated.")
    manifest: str | None = setting(
        None, "Manifest to evaluate on; null uses the manifest of the pretraining."
    )
    root: str | None = setting(
        None, "Folder or URL of the videos; null takes the one that the manifest names."
    )
    views: int = setting(
        4, "Clips per video, evenly spaced in time; the embedding is their mean. At least 2."
    )
    batch_size: int = setting(16, "Videos per batch when features are extracted.")
    precision: Precision = setting(
        Precision.auto,
        "Products in bf16 (autocast), tf32 or fp32; auto: bf16 on a GPU that has it, fp32 on a "
        "CPU. Features are stored in fp32.",
    )
    workers: int | str = setting(
        AUTO, "Decoding processes; auto: from the CPUs; 0 decodes in the main process."
    )
    knn_k: int = setting(20, "Neighbours that vote in the kNN classifier.")
    knn_temperature: float = setting(
        0.07, "Temperature of the kNN votes, which have weight exp(cosine / temperature)."
    )
    bootstrap_resamples: int = setting(
        1000, "Bootstrap resamples of source groups for each 95% interval."
    )
    seed: int = setting(
        0, "Seed of the bootstrap and of the clips that are sampled for the forecasting metrics."
    )
    force: bool = setting(False, "Extract the features again even if they are cached.")

    def __post_init__(self) -> None:
        if self.views < 2:
            raise UserError(
                f"views={self.views}: the stability metrics compare clips of one video, "
                "give views=2 or more."
            )
        for key in ("batch_size", "knn_k", "bootstrap_resamples"):
            if getattr(self, key) < 1:
                raise UserError(f"{key}={getattr(self, key)} must be at least 1.")
        check_workers(self.workers)
        if self.seed < 0:
            raise UserError(f"seed={self.seed} must be at least 0.")
        if self.knn_temperature <= 0:
            raise UserError(f"knn_temperature={self.knn_temperature} must be above 0.")
