"""Features of one encoder, with the label, source group and split of each video, and their cache.

Features are extracted once (`mofore.evaluation.extraction`) and cached in
RUN/evaluation/features.npz. Every evaluator is a function of `Features`.

N videos, V temporal views (clips) of a video, D embedding width, K forecast targets of a video.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from mofore.errors import UserError
from mofore.files import replace_file

COLUMNS = ("labels", "groups", "splits", "names")
DAMAGED = (BadZipFile, ValueError, EOFError, KeyError)


@dataclass(frozen=True, slots=True)
class ForecastErrors:
    """Mean squared errors on teacher latents, f32 [N, K]; nan for videos that were not forecast."""

    forecast: np.ndarray
    persistence: np.ndarray
    mean_latent: np.ndarray

    def select(self, rows: np.ndarray) -> "ForecastErrors":
        """The errors of some videos. rows: bool mask or i64 indices."""
        return ForecastErrors(self.forecast[rows], self.persistence[rows], self.mean_latent[rows])


@dataclass(frozen=True, slots=True)
class Features:
    """One encoder's features of N videos, in the order of the manifest.

    view_embeddings: f32 [N, V, D], one embedding per temporal view.
    labels ("" if unknown), groups, splits ("train", "test" or ""), names (`video_names`): str [N].
    errors: None for encoders without a forecaster.
    """

    view_embeddings: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    splits: np.ndarray
    names: np.ndarray
    errors: ForecastErrors | None = None

    @property
    def embeddings(self) -> np.ndarray:
        """f32 [N, D]: the embedding of a video is the mean over its temporal views."""
        return self.view_embeddings.mean(axis=1)

    def select(self, rows: np.ndarray) -> "Features":
        """The features of some videos. rows: bool mask or i64 indices."""
        return replace(
            self,
            view_embeddings=self.view_embeddings[rows],
            labels=self.labels[rows],
            groups=self.groups[rows],
            splits=self.splits[rows],
            names=self.names[rows],
            errors=self.errors and self.errors.select(rows),
        )

    def subset(self, split: str) -> "Features":
        """The features of the "train" or of the "test" split."""
        return self.select(self.splits == split)


@dataclass(frozen=True, slots=True)
class LabelledSplits:
    """The labelled videos of both splits, for evaluators that fit on train and score on test.

    problem: why they cannot be scored, or None. note: a caveat for the reader of the scores.
    """

    train: Features
    test: Features
    problem: str | None
    note: str | None


def labelled_splits(features: Features) -> LabelledSplits:
    """Select the labelled videos of both splits and check that they can be scored."""
    known = features.select(features.labels != "")
    train, test = known.subset("train"), known.subset("test")
    problem, note = None, None
    if not len(train.labels) or not len(test.labels):
        problem = "no labelled video in " + ("train" if not len(train.labels) else "test")
    elif len(set(train.labels)) < 2:
        problem = f"train has only one class ({train.labels[0]})"
    else:
        absent = sorted(set(test.labels) - set(train.labels))
        wrong = int(np.isin(test.labels, absent).sum())
        if absent:
            note = (
                f"{len(absent)} classes have no train video ({absent[0]}, ...): "
                f"{wrong} test videos count as wrong"
            )
    return LabelledSplits(train, test, problem, note)


def l2_normalise(vectors: np.ndarray) -> np.ndarray:
    """Scale vectors to unit L2 norm along the last axis; zero vectors stay zero."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)


def nearest_neighbours(
    queries: np.ndarray, bank: np.ndarray, k: int, block: int = 1024
) -> tuple[np.ndarray, np.ndarray]:
    """The k vectors of the bank with the highest cosine similarity to each query, nearest first.

    queries: f32 [M, D]; bank: f32 [N, D]; k: at most N; block: queries per matrix product.
    Returns cosines f32 [M, k] and rows of the bank i64 [M, k].
    """
    bank = l2_normalise(bank)
    cosines, rows = [], []
    for start in range(0, len(queries), block):
        similarity = l2_normalise(queries[start : start + block]) @ bank.T
        order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
        rows.append(order)
        cosines.append(np.take_along_axis(similarity, order, axis=1))
    return np.concatenate(cosines), np.concatenate(rows)


def save_features(path: Path, key: str, features: Mapping[str, Features], device: str) -> None:
    """Write the features of every encoder atomically.

    key: identifies everything that the features depend on. features: by encoder, of the same
    videos. device: what computed them, for the results' record.
    """
    arrays: dict[str, np.ndarray] = {"key": np.array(key), "device": np.array(device)}
    for encoder, each in features.items():
        arrays |= {column: getattr(each, column) for column in COLUMNS}
        arrays[f"{encoder}/view_embeddings"] = each.view_embeddings
        if each.errors is not None:
            for field in fields(ForecastErrors):
                arrays[f"{encoder}/errors/{field.name}"] = getattr(each.errors, field.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def load_cached_features(path: Path, key: str) -> tuple[dict[str, Features], str] | None:
    """The features by encoder, and the device that computed them.

    None if the file is absent, damaged or has another key.
    """
    try:
        with _open(path) as file:
            if str(file["key"]) != key:
                return None
            return _read(file), str(file["device"])
    except (FileNotFoundError, *DAMAGED):
        return None


def load_features(path: Path, encoders: Sequence[str]) -> dict[str, Features] | None:
    """The features of those encoders that the file has, whatever its key; None if it is absent.

    Raises UserError if the file is damaged.
    """
    try:
        with _open(path) as file:
            return _read(file, encoders)
    except FileNotFoundError:
        return None
    except DAMAGED as error:
        raise UserError(
            f"{path} is damaged ({error}). Extract the features again: "
            f"`mofore evaluate {path.parent.parent} force=true`."
        ) from None


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Mapping[str, np.ndarray]]:
    # np.load leaves a path open if the file is damaged; a stream is closed here.
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
        yield file


def _read(
    file: Mapping[str, np.ndarray], encoders: Sequence[str] | None = None
) -> dict[str, Features]:
    suffix = "/view_embeddings"
    stored = [name.removesuffix(suffix) for name in file if name.endswith(suffix)]
    columns = {column: file[column] for column in COLUMNS}
    return {
        encoder: Features(file[f"{encoder}{suffix}"], **columns, errors=_read_errors(file, encoder))
        for encoder in stored
        if encoders is None or encoder in encoders
    }


def _read_errors(file: Mapping[str, np.ndarray], encoder: str) -> ForecastErrors | None:
    if f"{encoder}/errors/forecast" not in file:
        return None
    names = [field.name for field in fields(ForecastErrors)]
    return ForecastErrors(*(file[f"{encoder}/errors/{name}"] for name in names))
