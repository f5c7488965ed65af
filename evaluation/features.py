"""What every evaluator reads: the embeddings of one encoder beside the labels, groups and parts of its videos.

Features are extracted once (`evaluation.encoders`, `evaluation.forecasting`), kept in RUN/evaluation/features.npz
and cut down here to what an evaluator asks for.

N videos, V temporal views of a video, D width of an embedding, K targets of a forecast.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from zipfile import BadZipFile

import numpy as np


@dataclass(frozen=True, slots=True)
class ForecastErrors:
    """Mean squared errors on the teacher's latents, f32 [N, K], nan where a video was not forecast."""

    forecast: np.ndarray
    persistence: np.ndarray
    mean_latent: np.ndarray

    def select(self, rows: np.ndarray) -> "ForecastErrors":
        """The same for some of the videos. rows: bool or i64 index."""
        return ForecastErrors(self.forecast[rows], self.persistence[rows], self.mean_latent[rows])


@dataclass(frozen=True, slots=True)
class Features:
    """One encoder's view of a dataset; rows in the manifest's order.

    clips: f32 [N, V, D]; labels ("" unknown), groups, parts ("train", "test", ""): str [N].
    """

    clips: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    parts: np.ndarray
    errors: ForecastErrors | None = None

    @property
    def embeddings(self) -> np.ndarray:
        """f32 [N, D]: a video's embedding is the mean over its temporal views."""
        return self.clips.mean(axis=1)

    def select(self, rows: np.ndarray) -> "Features":
        """The same for some of the videos. rows: bool or i64 index."""
        return replace(
            self,
            clips=self.clips[rows],
            labels=self.labels[rows],
            groups=self.groups[rows],
            parts=self.parts[rows],
            errors=self.errors and self.errors.select(rows),
        )

    def part(self, name: str) -> "Features":
        """The videos of "train" or of "test"."""
        return self.select(self.parts == name)


@dataclass(frozen=True, slots=True)
class Labelled:
    """The labelled videos of both parts, for evaluators that compare test with train.

    problem: why no such comparison makes sense, None if it does; note: what a reader must know of the numbers.
    """

    train: Features
    test: Features
    problem: str | None
    note: str | None


def labelled(features: Features) -> Labelled:
    """The labelled part of the features."""
    known = features.select(features.labels != "")
    train, test = known.part("train"), known.part("test")
    problem, note = None, None
    if not len(train.labels) or not len(test.labels):
        problem = "no labelled video in " + ("train" if not len(train.labels) else "test")
    elif len(set(train.labels)) < 2:
        problem = f"one class only in train ({train.labels[0]}): nothing to tell apart"
    else:
        absent = sorted(set(test.labels) - set(train.labels))
        wrong = int(np.isin(test.labels, absent).sum())
        if absent:
            note = f"{len(absent)} classes without a train video ({absent[0]}, ...): {wrong} test videos count as wrong"
    return Labelled(train, test, problem, note)


def unit(vectors: np.ndarray) -> np.ndarray:
    """The vectors at length one, along the last axis; a zero vector stays zero."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)


def nearest(
    queries: np.ndarray, bank: np.ndarray, k: int, block: int = 1024
) -> tuple[np.ndarray, np.ndarray]:
    """The k videos of the bank with the largest cosine to each query, the nearest first.

    queries: f32 [M, D]; bank: f32 [N, D]; k at most N. Returns cosine f32 [M, k] and rows of the bank i64 [M, k].
    """
    bank = unit(bank)
    cosines, rows = [], []
    for start in range(0, len(queries), block):
        similarity = unit(queries[start : start + block]) @ bank.T
        order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
        rows.append(order)
        cosines.append(np.take_along_axis(similarity, order, axis=1))
    return np.concatenate(cosines), np.concatenate(rows)


# ---------------------------------------------------------------------------------------------------- the cache


@dataclass(frozen=True, slots=True)
class Extracted:
    """What one pass over the videos gave, before labels and parts are laid beside it.

    rows: i64 [N] rows of the manifest that were long enough, ascending; clips: encoder -> f32 [N, V, D].
    """

    rows: np.ndarray
    clips: Mapping[str, np.ndarray]
    errors: Mapping[str, ForecastErrors]


def save(path: Path, key: str, extracted: Extracted, columns: Mapping[str, np.ndarray]) -> None:
    """Write the cache under a temporary name and rename it.

    key: what the features depend on. columns: str [N] arrays for readers of the file (labels, groups, ...).
    """
    arrays: dict[str, np.ndarray] = {"key": np.array(key), "rows": extracted.rows, **columns}
    for encoder, clips in extracted.clips.items():
        arrays[f"{encoder}/clips"] = clips
        arrays[f"{encoder}/embeddings"] = clips.mean(axis=1)
    for encoder, errors in extracted.errors.items():
        for field in fields(errors):
            arrays[f"{encoder}/errors/{field.name}"] = getattr(errors, field.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    os.replace(temporary, path)


def load(path: Path, key: str) -> Extracted | None:
    """The cache if it was made with this very key; None if there is none, another one, or a damaged one."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            if "key" not in file or str(file["key"]) != key:
                return None
            arrays = {name: file[name] for name in file.files}
    except (FileNotFoundError, BadZipFile, ValueError, EOFError):
        return None  # extracting again mends all of these
    clips = {name[: -len("/clips")]: array for name, array in arrays.items() if name.endswith("/clips")}
    errors = {
        encoder: ForecastErrors(
            *(arrays[f"{encoder}/errors/{field.name}"] for field in fields(ForecastErrors))
        )
        for encoder in clips
        if f"{encoder}/errors/forecast" in arrays
    }
    return Extracted(arrays["rows"], clips, errors)
