import numpy as np
import pytest

from refine_jax import answers
from refine_jax.evaluation import Answers

IDENTITY = {"victim": "ab", "defense": None, "settings": {"weights": [1, 2.5]}}


@pytest.fixture
def kept(tmp_path):
    path = tmp_path / "evaluation" / "refine.npz"
    answers.save(path, Answers(np.array([0, 3, 999]), np.array([2, 2]), 1000), IDENTITY)
    return path


def test_answers_come_back_as_they_were_given(kept, tmp_path):
    found = answers.load(kept, IDENTITY)
    assert (found.clean.tolist(), found.triggered.tolist(), found.num_classes) == ([0, 3, 999], [2, 2], 1000)
    with np.load(kept) as file:
        assert file["clean"].dtype == file["triggered"].dtype == np.uint16
    untriggered = tmp_path / "untriggered.npz"
    answers.save(untriggered, Answers(np.array([1]), None, 2), IDENTITY)
    assert answers.load(untriggered, IDENTITY).triggered is None


def test_scores_come_back_too_and_those_of_before_have_none(kept, tmp_path):
    assert answers.load(kept, IDENTITY).clean_scores is None  # as files of the first versions
    scores = np.array([[0.25, 0.75]]), np.array([[1.0, 0.0]])
    path = tmp_path / "scored.npz"
    answers.save(path, Answers(np.array([1]), np.array([0]), 2, *scores), IDENTITY)
    found = answers.load(path, IDENTITY)
    np.testing.assert_array_equal(found.clean_scores, scores[0])
    np.testing.assert_array_equal(found.triggered_scores, scores[1])
    assert found.clean_scores.dtype == np.float32


def test_answers_of_something_else_are_none(kept, tmp_path):
    assert answers.load(kept, {**IDENTITY, "victim": "ac"}) is None
    assert answers.load(tmp_path / "missing.npz", IDENTITY) is None


def test_damaged_answers_are_none_and_that_is_said(kept, caplog):
    whole = kept.read_bytes()
    with np.load(kept) as file:
        arrays = dict(file)
    np.savez_compressed(kept, **{**arrays, "clean": arrays["clean"][::-1]})
    assert answers.load(kept, IDENTITY) is None
    kept.write_bytes(whole[: len(whole) // 2])
    assert answers.load(kept, IDENTITY) is None
    assert caplog.text.count("is damaged") == 2
