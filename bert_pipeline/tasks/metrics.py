"""Metrics of predictions, by scikit-learn and scipy."""

from collections.abc import Mapping

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from bert_pipeline.ragged import Array


def measure_classes(labels: Array, predicted: Array, classes: int) -> dict[str, float]:
    """Accuracy, F1 and Matthews correlation.

    F1 is that of class 1 of two, as for MRPC and QQP in GLUE, and of more classes the mean.
    """
    is_varied = len(np.union1d(labels, predicted)) > 1
    average = {"average": "binary"} if classes == 2 else {"average": "macro"}
    return {
        "accuracy": float(accuracy_score(labels, predicted)),
        "f1": float(f1_score(labels, predicted, zero_division=0, **average)),
        "matthews_correlation": float(matthews_corrcoef(labels, predicted)) if is_varied else 0.0,
        "majority": float(np.bincount(labels).max() / len(labels)),
    }


def measure_labels(labels: Array, predicted: Array) -> dict[str, float]:
    """Share of rows with all labels right (accuracy), and micro- and macro-averaged F1."""
    return {
        "accuracy": float(accuracy_score(labels, predicted)),
        "f1": float(f1_score(labels, predicted, average="micro", zero_division=0)),
        "f1_macro": float(f1_score(labels, predicted, average="macro", zero_division=0)),
    }


def measure_regression(labels: Array, predicted: Array) -> dict[str, float]:
    """Pearson and Spearman correlation, 0 where one of both is constant, and mean squared error."""
    is_constant = np.ptp(labels) == 0 or np.ptp(predicted) == 0
    correlations: Mapping[str, float] = {"pearson": 0.0, "spearman": 0.0}
    if not is_constant:
        correlations = {
            "pearson": float(pearsonr(labels, predicted).statistic),
            "spearman": float(spearmanr(labels, predicted).statistic),
        }
    return {**correlations, "mse": float(np.mean((labels - predicted) ** 2))}
