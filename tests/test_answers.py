import numpy as np
import pytest

from refine_jax import answers, asking
from refine_jax.asking import Answers

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


class Slow:
    """A classifier that answers with an image's first pixel, and is cut off before its batch number `last`."""

    def __init__(self, last=99):
        self.batches, self._last = 0, last

    def __call__(self, images):
        if self.batches == self._last:
            raise KeyboardInterrupt
        self.batches += 1
        return np.eye(10, dtype=np.float32)[np.rint(np.asarray(images)[:, 0, 0, 0] * 255).astype(int)]


@pytest.fixture
def images(monkeypatch):
    """Five batches of clean images and three of triggered ones."""
    rng = np.random.default_rng(0)
    monkeypatch.setattr(asking, "BATCH_SIZE", 4)
    monkeypatch.setattr(answers, "_INTERVAL", 0.0)
    return {"clean": pixels(rng, 18), "triggered": pixels(rng, 10)}


def pixels(rng, count):
    return rng.integers(0, 10, (count, 2, 2, 3), dtype=np.uint8)


def ask(path, images, predict, identity=IDENTITY):
    counts = {kind: len(of) for kind, of in images.items()}
    so_far = answers.Unfinished(path, identity, "slow", counts)
    return asking.answer(predict, images["clean"], images["triggered"], 6, so_far)


@pytest.mark.parametrize("last", [1, 4, 5, 7])
def test_a_classifier_that_is_cut_off_goes_on_where_it_was(images, tmp_path, caplog, last):
    caplog.set_level("INFO")
    path = tmp_path / "evaluation" / "slow.unfinished.npz"
    whole = asking.answer(Slow(), images["clean"], images["triggered"], 6)
    with pytest.raises(KeyboardInterrupt):
        ask(path, images, Slow(last))
    rest = Slow()
    found = ask(path, images, rest)
    assert rest.batches == 8 - last
    for name in ("clean", "triggered", "clean_scores", "triggered_scores"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))
    assert found.num_classes == 10
    assert f"slow goes on after {min(4 * last, 18) + 4 * max(0, last - 5)} images" in caplog.text
    assert "slow, 4 of 28 images, 0:00 left" in caplog.text


def test_what_was_answered_to_others_is_asked_again(images, tmp_path):
    path = tmp_path / "slow.unfinished.npz"
    with pytest.raises(KeyboardInterrupt):
        ask(path, images, Slow(3))
    for identity in ({**IDENTITY, "victim": "ac"}, IDENTITY):  # the second finds what the first has left
        again = Slow()
        ask(path, images, again, identity)
        assert again.batches == 8


def test_a_classifier_that_is_done_at_once_leaves_nothing(images, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(answers, "_INTERVAL", 60.0)
    ask(tmp_path / "quick.unfinished.npz", images, Slow())
    assert not [*tmp_path.iterdir()]
    assert not caplog.text
