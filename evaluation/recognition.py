"""Features in, out how well classes can be told apart: weighted nearest neighbours and a linear probe.

Both learn from train and are scored on test. What is tuned (the probe's C) is tuned inside train, on groups
held back from it; the test part is read once, for the score.
"""

import warnings

import numpy as np
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from evaluation.features import Features, labelled, nearest
from evaluation.intervals import Bootstrap, Result, missing
from evaluation.splits import cut_groups
from mofore.config import EvaluateConfig

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # C: the inverse of the weight of the L2 penalty
DEFAULT_STRENGTH = 1e-2
ITERATIONS = 1000


def weighted_knn(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, k: int, temperature: float
) -> np.ndarray:
    """Each of the k nearest train videos votes for its class with weight exp(cosine / temperature).

    Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018, section 3.4.
    train: f32 [N, D]; labels: str [N]; test: f32 [M, D]. Returns str [M]; of equal votes the first name wins.
    """
    cosine, neighbours = nearest(test, train, min(k, len(train)))
    classes, codes = np.unique(labels, return_inverse=True)
    # The weights of one query may share any factor: relative to the nearest none can overflow.
    weights = np.exp((cosine - cosine[:, :1]).astype(np.float64) / temperature)
    votes = np.zeros((len(test), len(classes)))
    np.add.at(votes, (np.arange(len(test))[:, None], codes[neighbours]), weights)
    return classes[votes.argmax(axis=1)]


def knn(features: Features, cfg: EvaluateConfig) -> list[Result]:
    """Accuracy of weighted nearest neighbours."""
    found = labelled(features)
    metric, protocol = "knn_accuracy", f"knn k={cfg.k} tau={cfg.temperature:g}"
    if found.problem:
        return [missing(metric, protocol, found.problem)]
    k = min(cfg.k, len(found.train.labels))
    if k < cfg.k:
        protocol = f"knn k={k} (all of train) tau={cfg.temperature:g}"
    predicted = weighted_knn(
        found.train.embeddings, found.train.labels, found.test.embeddings, k, cfg.temperature
    )
    return [_accuracy(metric, predicted, found.test, protocol, found.note, cfg)]


def linear_probe(features: Features, cfg: EvaluateConfig) -> list[Result]:
    """Accuracy of multinomial logistic regression on standardised features, C chosen inside train."""
    found = labelled(features)
    metric, protocol = "linear_probe_accuracy", "logistic regression on standardised features"
    if found.problem:
        return [missing(metric, protocol, found.problem)]
    probe, strength = fit_probe(found.train)
    if strength is None:
        protocol = f"{protocol}, C={DEFAULT_STRENGTH:g} (train has too few groups to choose on)"
    else:
        protocol = f"{protocol}, C={strength:g} chosen on held-back groups of train"
    return [_accuracy(metric, probe.predict(found.test.embeddings), found.test, protocol, found.note, cfg)]


def fit_probe(train: Features) -> tuple[Pipeline, float | None]:
    """The probe, and the C that was chosen inside train; None where there was nothing to choose on."""
    strength = choose_strength(train.embeddings, train.labels, train.groups)
    return _fit(train.embeddings, train.labels, strength or DEFAULT_STRENGTH), strength


def choose_strength(train: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> float | None:
    """The C that does best on a fifth of train's groups when fitted on the others; of equals the smallest.

    None where train cannot be cut into two parts without sharing a group, or the fitted part has one class.
    """
    held = np.array(cut_groups(groups.tolist(), labels.tolist())) == "test"
    if not held.any() or len(set(labels[~held])) < 2:
        return None
    scores = [_fit(train[~held], labels[~held], c).score(train[held], labels[held]) for c in STRENGTHS]
    return STRENGTHS[int(np.argmax(scores))]


def _fit(train: np.ndarray, labels: np.ndarray, strength: float) -> Pipeline:
    steps = [StandardScaler(), LogisticRegression(C=strength, max_iter=ITERATIONS)]
    if train.shape[1] > len(train):
        # Nothing is dropped: with an L2 penalty the solution lies in the span of the rows, so it is the same
        # and costs as many dimensions as there are rows (a pixel baseline has thousands).
        steps.insert(1, PCA(svd_solver="full"))
    probe = make_pipeline(*steps)
    with warnings.catch_warnings():
        # The score is of the probe as fitted; a weaker penalty that needs more iterations is only chosen if it helps.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return probe.fit(train, labels)


def _accuracy(
    metric: str, predicted: np.ndarray, test: Features, protocol: str, note: str | None, cfg: EvaluateConfig
) -> Result:
    bootstrap = Bootstrap(test.groups, cfg.resamples, cfg.seed)
    correct = (predicted == test.labels).astype(float)
    return bootstrap.result(metric, bootstrap.mean(correct), len(correct), protocol, note)
