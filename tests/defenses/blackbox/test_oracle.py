"""What is asked of a victim: exactly that, once, and however often it fails."""

import errno

import numpy as np
import pytest

from refine_jax.defenses.blackbox import BudgetSpent, Oracle, OracleError, RateLimited
from refine_jax.errors import SettingError, StorageError, WorkdirError
from tests.defenses.blackbox.counting import SIDE, Counting, K, images, one_in_five


def oracle(function, **given):
    waited = []
    made = Oracle(function, K, (SIDE, SIDE), **{"batch_size": 4, "sleep": waited.append, **given})
    made.waited = waited
    return made


def test_counts_are_those_of_the_victim():
    victim = Counting()
    asked = oracle(victim)
    shown = images(10)
    first = asked(shown)
    assert (asked.queries, asked.calls, victim.images, victim.calls) == (10, 3, 10, 3)
    np.testing.assert_allclose(first, Counting()(shown / np.float32(255)), rtol=1e-6)
    assert first.dtype == np.float32

    again = asked(np.concatenate([shown[3:], images(2, seed=1), images(2, seed=1)]))
    np.testing.assert_array_equal(again[:7], first[3:])
    np.testing.assert_array_equal(again[7:9], again[9:])
    assert (asked.queries, asked.calls, victim.images, victim.calls) == (12, 4, 12, 4)
    np.testing.assert_array_equal(asked(shown / np.float32(255)), first)  # the same images, as floats
    assert asked.missing(np.concatenate([shown, images(3, seed=2), images(3, seed=2)[:1]])) == 3
    assert asked(shown[:0]).shape == (0, K)
    assert (victim.images, len({*victim.seen})) == (12, 12)


def test_a_victim_that_fails_one_call_in_five_answers_the_same():
    sound, failing = Counting(), Counting(one_in_five)
    expected, found = oracle(sound), oracle(failing)
    shown = images(50)
    np.testing.assert_array_equal(found(shown), expected(shown))
    assert (found.queries, found.calls) == (expected.queries, expected.calls) == (50, 13)
    assert (failing.images, failing.answered, failing.calls) == (50, 13, 16)
    assert found.failures == 3
    assert expected.failures == 0
    assert found.waited == [1.0] * 3


def test_waits_are_twice_as_long_each_time_and_end():
    failing = Counting(lambda call: OSError("down") if call > 1 else None)
    asked = oracle(failing, retries=8, wait=0.5)
    with pytest.raises(OracleError, match=r"failed 9 times in a row, last with OSError: down; 4 answers are kept"):
        asked(images(6))
    assert asked.waited == [0.5, 1, 2, 4, 8, 16, 32, 60]
    assert (asked.queries, asked.failures, failing.calls) == (4, 9, 10)


def test_a_rate_limit_says_how_long_to_wait():
    now, free_at = [0.0], [0.0]

    def limited(call):
        if now[0] < free_at[0]:
            return RateLimited(free_at[0] - now[0])
        free_at[0] = now[0] + 90
        return None

    def sleep(seconds):
        now[0] += seconds

    victim = Counting(limited)
    asked = oracle(victim, sleep=sleep, retries=1)
    asked(images(12))
    assert (now[0], asked.failures, asked.queries, victim.answered) == (180, 2, 12, 3)


def test_a_restart_asks_nothing_twice(tmp_path):
    path, shown = tmp_path / "answers", images(11)
    down = Counting(lambda call: TimeoutError("slow") if call > 2 else None)
    with oracle(down, cache=path, retries=0) as asked, pytest.raises(OracleError, match="8 answers are kept"):
        asked(shown)
    victim = Counting()
    with oracle(victim, cache=path, budget=11) as asked:
        assert (asked.queries, asked.calls, asked.left) == (8, 2, 3)
        answered = asked(shown)
        assert (victim.images, asked.queries, asked.calls, asked.left) == (3, 11, 3, 0)
    np.testing.assert_array_equal(answered, oracle(Counting())(shown))
    with oracle(Counting(lambda call: AssertionError), cache=path, budget=11) as asked:
        np.testing.assert_array_equal(asked(shown), answered)
        assert (asked.queries, asked.calls, asked.failures) == (11, 3, 0)


@pytest.mark.parametrize("lost", [1, 35, 36, 37, 73])
def test_a_torn_record_is_asked_again(lost, tmp_path):
    path, shown = tmp_path / "answers", images(6)
    with oracle(Counting(), cache=path) as asked:
        expected = asked(shown)
    whole = path.read_bytes()
    record = 16 + 4 + 4 * K + 4
    path.write_bytes(whole[:-lost])
    gone = -(-lost // record)
    victim = Counting()
    with oracle(victim, cache=path) as asked:
        assert asked.queries == 6 - gone
        np.testing.assert_array_equal(asked(shown), expected)
    assert victim.images == gone
    assert len(path.read_bytes()) == len(whole)
    with oracle(Counting(lambda call: AssertionError), cache=path) as asked:
        np.testing.assert_array_equal(asked(shown), expected)


def test_a_damaged_record_is_asked_again_and_a_torn_header_begins_anew(tmp_path):
    path, shown = tmp_path / "answers", images(6)
    with oracle(Counting(), cache=path) as asked:
        expected = asked(shown)
    whole = bytearray(path.read_bytes())
    header = whole.index(b"\n") + 1
    whole[header + 50] ^= 1  # in the second record
    path.write_bytes(whole)
    victim = Counting()
    with oracle(victim, cache=path) as asked:
        np.testing.assert_array_equal(asked(shown), expected)
    assert victim.images == 1
    path.write_bytes(whole[: header - 5])
    with oracle(Counting(), cache=path) as asked:
        assert asked.queries == 0
        np.testing.assert_array_equal(asked(shown), expected)


@pytest.mark.parametrize("half", [1, 17, 39])
def test_records_behind_half_a_record_are_found(half, tmp_path):
    path, shown = tmp_path / "answers", images(6)
    with oracle(Counting(), cache=path) as asked:
        expected = asked(shown)
    whole = path.read_bytes()
    second = whole.index(b"\n") + 1 + 16 + 4 + 4 * K + 4
    path.write_bytes(whole[:second] + whole[second : second + half] + whole[second:])
    with oracle(Counting(lambda call: AssertionError), cache=path) as asked:
        assert asked.queries == 6
        np.testing.assert_array_equal(asked(shown), expected)
    with oracle(Counting(), cache=path) as asked:
        asked(images(3, seed=1))
    with oracle(Counting(lambda call: AssertionError), cache=path) as asked:
        assert asked.queries == 9
        np.testing.assert_array_equal(asked(shown), expected)


def test_another_oracles_answers_are_refused(tmp_path):
    path = tmp_path / "answers"
    oracle(Counting(), cache=path).close()
    with pytest.raises(WorkdirError, match="holds answers of another oracle"):
        oracle(Counting(labels=True), cache=path, answers="labels")
    path.write_text("something else\n")
    with pytest.raises(WorkdirError, match="another oracle: something else"):
        oracle(Counting(), cache=path)
    assert path.read_text() == "something else\n"
    oracle(Counting(), cache=tmp_path / "first", victim="first").close()
    oracle(Counting(), cache=tmp_path / "first", victim="first").close()
    for other in ("second", None):
        with pytest.raises(WorkdirError, match=r"another oracle: .*first.*: use another file, or delete it"):
            oracle(Counting(), cache=tmp_path / "first", victim=other)
    with pytest.raises(StorageError, match="cannot be written"):
        oracle(Counting(), cache=tmp_path)


def test_two_oracles_of_one_process_do_not_add_to_one_file(tmp_path):
    first = oracle(Counting(), cache=tmp_path / "answers")
    for _ in range(2):  # the first attempt does not take the lock away
        with pytest.raises(WorkdirError, match="in use: another oracle"):
            oracle(Counting(), cache=tmp_path / "answers")
    first.close()
    oracle(Counting(), cache=tmp_path / "answers").close()


class Filling:
    """A file on a disk that takes a few bytes more and then none."""

    def __init__(self, file, left, error=None):
        self._file, self._left = file, left
        self._error = error or OSError(errno.ENOSPC, "No space left on device")

    def write(self, data):
        if not self._left:
            raise self._error
        taken = min(len(data), self._left, 25)
        self._left -= taken
        return self._file.write(data[:taken])

    def __getattr__(self, name):
        return getattr(self._file, name)


@pytest.mark.parametrize("left", [40, 10_000])
def test_answers_are_written_whole_or_not_at_all(left, tmp_path):
    shown = images(10)
    with oracle(Counting(), cache=tmp_path / "answers") as asked:
        asked(shown[:3])
        asked._cache._file = Filling(asked._cache._file, left)
        if left == 40:
            with pytest.raises(StorageError, match="No space left"):
                asked(shown)
        else:
            asked(shown)
    victim = Counting()
    with oracle(victim, cache=tmp_path / "answers") as asked:
        asked(shown)
    assert victim.images == (7 if left == 40 else 0)


def test_a_write_that_was_interrupted_is_taken_back(tmp_path):
    shown = images(10)
    with oracle(Counting(), cache=tmp_path / "answers") as asked:
        asked(shown[:3])
        before, file = (tmp_path / "answers").read_bytes(), asked._cache._file
        asked._cache._file = Filling(file, 40, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            asked(shown)
    assert (tmp_path / "answers").read_bytes() == before


def test_a_budget_is_asked_for_before_anything_is():
    victim = Counting()
    asked = oracle(victim, budget=7)
    shown = images(10)
    asked(shown[:3])
    with pytest.raises(BudgetSpent, match=r"7 images .* budget of 7 there are 4 left; 3 answers are kept"):
        asked(shown)
    assert (victim.images, asked.queries, asked.left) == (3, 3, 4)
    assert asked.affordable(shown) == 7
    asked(shown[:7])
    assert (victim.images, asked.left, asked.affordable(shown), asked.affordable(shown[:5])) == (7, 0, 7, 5)
    asked.serve(shown)
    assert (victim.images, asked.queries, asked.served, asked.left) == (17, 7, 10, 0)


def test_labels_and_rounded_images():
    victim = Counting(labels=True)
    asked = oracle(victim, answers="labels", shown="uint8")
    shown = images(9)
    expected = Counting(labels=True)(shown)
    answered = asked(shown)
    assert answered.dtype == np.int32
    np.testing.assert_array_equal(answered, expected)
    np.testing.assert_array_equal(asked(shown / 255 + 0.001), expected)  # rounded, the very same images
    assert victim.images == 9
    np.testing.assert_array_equal(asked.serve(shown), expected)


@pytest.mark.parametrize(
    ("answer", "answers", "message"),
    [
        (np.zeros((2, 3)), "probabilities", r"float64 \[2, 3\]: allowed: probabilities \[2, 4\]"),
        (np.full((2, 4), 0.3), "probabilities", r"gave \[0.3, 0.3, 0.3, 0.3\]: allowed: .*add up to 1"),
        (np.array([[0.5, 0.5, 0, 0], [np.nan, 1, 0, 0]]), "probabilities", r"gave \[nan, 1.0, 0.0, 0.0\]"),
        (np.array([[2.0, -1, 0, 0]] * 2), "probabilities", r"gave \[2.0, -1.0"),
        (None, "probabilities", r"gave object \[\]"),
        (np.eye(4)[:2], "labels", r"float64 \[2, 4\]: allowed: labels \[2\]"),
        (np.array([0, 4]), "labels", r"gave 4: allowed: .*from 0 to 3"),
        (np.array([0.5, 1]), "labels", r"gave 0.5"),
    ],
)
def test_answers_that_are_none_are_refused(answer, answers, message):
    asked = oracle(lambda images: answer, answers=answers)
    with pytest.raises(OracleError, match=message):
        asked(images(2))
    assert asked.queries == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"answers": "logits"}, r"answers = 'logits': allowed: probabilities, labels"),
        ({"budget": 0}, "budget = 0: allowed: a whole number, 1 or more"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"retries": -1}, "retries = -1"),
        ({"wait": -1.0}, "wait"),
        ({"shown": "png"}, "shown"),
    ],
)
def test_impossible_arguments_are_refused(given, message):
    with pytest.raises(SettingError, match=message):
        oracle(Counting(), **given)


@pytest.mark.parametrize(
    "shown", [np.zeros((2, 9, 8, 3), np.uint8), np.zeros((2, 8, 8, 3), int), np.full((1, 8, 8, 3), 1.5)]
)
def test_what_are_no_images_is_refused(shown):
    victim = Counting()
    with pytest.raises(SettingError, match="images ="):
        oracle(victim)(shown)
    assert victim.calls == 0
