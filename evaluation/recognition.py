"""Classification accuracy on frozen features: weighted kNN and a linear probe.

Both fit on train and are scored on test. The only tuned parameter, the probe's C, is selected on
held-out groups of train.
"""

import warnings

import numpy as np
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from mofore.evaluation.config import EvaluateConfig
from mofore.evaluation.features import Features, labelled_splits, nearest_neighbours
from mofore.evaluation.intervals import Bootstrap, Result, missing
from mofore.evaluation.splits import derive_splits

C_VALUES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # inverse weights of the L2 penalty
DEFAULT_C = 1e-2
MAX_ITERATIONS = 1000


def weighted_knn(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, k: int, temperature: float
) -> np.ndarray:
    """Classify by the k nearest train videos, which vote with weight exp(cosine / temperature).

    Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR
    2018, section 3.4. train: f32 [N, D]; labels: str [N]; test: f32 [M, D]. Returns str [M]; ties
    go to the class that is first in alphabetical order.
    """
    cosines, neighbours = nearest_neighbours(test, train, min(k, len(train)))
    classes, codes = np.unique(labels, return_inverse=True)
    # A common factor of a query's weights changes nothing; relative to the nearest, none overflows.
    weights = np.exp((cosines - cosines[:, :1]).astype(np.float64) / temperature)
    votes = np.zeros((len(test), len(classes)))
    np.add.at(votes, (np.arange(len(test))[:, None], codes[neighbours]), weights)
    return classes[votes.argmax(axis=1)]


def knn(features: Features, cfg: EvaluateConfig) -> list[Result]:
    """Accuracy of weighted kNN."""
    data = labelled_splits(features)
    metric, protocol = "knn_accuracy", f"kNN, k={cfg.knn_k}, temperature {cfg.knn_temperature:g}"
    if data.problem:
        return [missing(metric, protocol, data.problem)]
    k = min(cfg.knn_k, len(data.train.labels))
    if k < cfg.knn_k:
        protocol = f"kNN, k={k} (all of train), temperature {cfg.knn_temperature:g}"
    train, test = data.train, data.test
    predicted = weighted_knn(
        train.embeddings, train.labels, test.embeddings, k, cfg.knn_temperature
    )
    return [_accuracy(metric, predicted, test, protocol, data.note, cfg)]


def linear_probe(features: Features, cfg: EvaluateConfig) -> list[Result]:
    """Accuracy of multinomial logistic regression on standardised features."""
    data = labelled_splits(features)
    metric, protocol = "linear_probe_accuracy", "logistic regression on standardised features"
    if data.problem:
        return [missing(metric, protocol, data.problem)]
    probe, c = fit_probe(data.train)
    if c is None:
        protocol = f"{protocol}, C={DEFAULT_C:g} (train has too few groups to select C)"
    else:
        protocol = f"{protocol}, C={c:g} selected on held-out groups of train"
    predicted = probe.predict(data.test.embeddings)
    return [_accuracy(metric, predicted, data.test, protocol, data.note, cfg)]


def fit_probe(train: Features) -> tuple[Pipeline, float | None]:
    """The linear probe and the C selected on train; None if DEFAULT_C was used."""
    c = select_c(train.embeddings, train.labels, train.groups)
    return _fit(train.embeddings, train.labels, c or DEFAULT_C), c


def select_c(train: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> float | None:
    """The C with the best accuracy on a held-out fifth of the groups; the smallest if tied.

    train: f32 [N, D]; labels, groups: str [N]. Returns None if train cannot be split by group, or
    the remaining groups have only one class.
    """
    held_out = np.array(derive_splits(groups.tolist(), labels.tolist())) == "test"
    if not held_out.any() or len(set(labels[~held_out])) < 2:
        return None
    scores = [
        _fit(train[~held_out], labels[~held_out], c).score(train[held_out], labels[held_out])
        for c in C_VALUES
    ]
    return C_VALUES[int(np.argmax(scores))]


def _fit(train: np.ndarray, labels: np.ndarray, c: float) -> Pipeline:
    steps = [StandardScaler(), LogisticRegression(C=c, max_iter=MAX_ITERATIONS)]
    if train.shape[1] > len(train):
        # Full PCA loses nothing: with an L2 penalty the solution lies in the span of the rows. It
        # reduces the dimensions to the number of rows (a pixel baseline has thousands).
        steps.insert(1, PCA(svd_solver="full"))
    probe = make_pipeline(*steps)
    with warnings.catch_warnings():
        # The probe is scored as fitted: a C that would need more iterations is selected only if it
        # scores best anyway.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return probe.fit(train, labels)


def _accuracy(
    metric: str,
    predicted: np.ndarray,
    test: Features,
    protocol: str,
    note: str | None,
    cfg: EvaluateConfig,
) -> Result:
    bootstrap = Bootstrap(test.groups, cfg.bootstrap_resamples, cfg.seed)
    correct = (predicted == test.labels).astype(float)
    return bootstrap.result(metric, bootstrap.mean(correct), len(correct), protocol, note)
