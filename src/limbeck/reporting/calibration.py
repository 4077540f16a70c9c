"""Whether a classifier's confidence can be taken at its word.

Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, section 2: reliability
diagrams and the expected calibration error with equal-width bins. The paper's bins are open on the left; we also
put a confidence of exactly 0 into the first bin, so that no image is lost.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram.

    Attributes:
        edges: (bins + 1,), from 0 to 1; bin b holds confidences in (edges[b], edges[b + 1]].
        counts: (bins,) images in each bin.
        confidence: (bins,) their mean confidence; NaN where a bin is empty.
        accuracy: (bins,) the share of them that is right; NaN where a bin is empty.
        error: the expected calibration error, 0 to 1.
    """

    edges: NDArray[np.float64]
    counts: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    error: float


def reliability(probabilities: NDArray[np.floating], labels: NDArray[np.integer], bins: int = 15) -> Reliability:
    """Mean confidence and accuracy in equal-width bins of the top-1 confidence.

    Args:
        probabilities: (N, K), rows that sum to 1.
        labels: (N,) class indices.
        bins: M, the number of bins.

    Returns:
        The diagram. Its error is the sum over bins of n_b / N * |accuracy_b - confidence_b|; NaN for no images.

    Raises:
        ValueError: the shapes do not belong together.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    labels = np.asarray(labels)
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1]:
        raise ValueError(f"expected probabilities (N, K) and labels (N,), got {probabilities.shape} and {labels.shape}")
    edges = np.linspace(0.0, 1.0, bins + 1)
    top = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    # side="left" puts a confidence equal to an edge into the bin below it; rounding may leave top a hair above 1.
    bin_of = np.clip(np.searchsorted(edges, top, side="left") - 1, 0, bins - 1)
    counts = np.bincount(bin_of, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(bin_of, weights=top, minlength=bins) / counts
        accuracy = np.bincount(bin_of, weights=right, minlength=bins) / counts
    filled = counts > 0
    gaps = np.abs(accuracy[filled] - confidence[filled])
    error = float((counts[filled] * gaps).sum() / len(labels)) if len(labels) else float("nan")
    return Reliability(edges, counts, confidence, accuracy, error)


def expected_calibration_error(
    probabilities: NDArray[np.floating], labels: NDArray[np.integer], bins: int = 15
) -> float:
    """The expected calibration error of the top-1 confidence, 0 to 1; see `reliability`."""
    return reliability(probabilities, labels, bins).error


def softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Probabilities (N, K) of logits (N, K), in double precision and without overflow."""
    shifted = np.asarray(logits, dtype=np.float64)
    shifted = np.exp(shifted - shifted.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))
