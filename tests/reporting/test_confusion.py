import numpy as np
import pytest

from limbeck.reporting.confusion import (
    ConfusedPair,
    confusion_matrix,
    confusion_rows,
    most_confused,
    recall,
    worst_classes,
)

LABELS = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2])
GUESSES = np.array([0, 1, 1, 1, 1, 0, 2, 2, 1])


def test_matrix_counts_truth_by_row_and_answer_by_column():
    assert confusion_matrix(LABELS, GUESSES, 4).tolist() == [[1, 2, 0, 0], [0, 2, 0, 0], [1, 1, 2, 0], [0, 0, 0, 0]]


def test_rows_agree_with_the_full_matrix():
    rng = np.random.default_rng(0)
    labels, guesses = rng.integers(0, 30, 500), rng.integers(0, 30, 500)
    classes = np.array([7, 3, 29])
    full = confusion_matrix(labels, guesses, 30)
    rows = confusion_rows(labels, guesses, classes)
    assert rows[:, :-1].tolist() == full[np.ix_(classes, classes)].tolist()
    assert rows.sum(1).tolist() == full[classes].sum(1).tolist()


def test_recall_and_the_worst_classes_leave_out_classes_without_images():
    assert recall(LABELS, GUESSES, 4)[:3] == pytest.approx([1 / 3, 1, 1 / 2])
    assert np.isnan(recall(LABELS, GUESSES, 4)[3])
    assert worst_classes(LABELS, GUESSES, 4, 2).tolist() == [0, 2]
    assert worst_classes(LABELS, GUESSES, 4, 9).tolist() == [0, 2, 1]


def test_most_confused_are_sorted_by_images():
    assert most_confused(LABELS, GUESSES, 2) == [ConfusedPair(0, 1, 2, 2 / 3), ConfusedPair(2, 0, 1, 1 / 4)]
    assert most_confused(LABELS, LABELS, 2) == []
