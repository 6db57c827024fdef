import pytest

from refine_jax.training import pace


@pytest.fixture
def clock(monkeypatch):
    """The seconds that the watch sees, in a list of one."""
    seconds = [100.0]
    monkeypatch.setattr(pace.time, "monotonic", lambda: seconds[0])
    return seconds


def test_calls_that_compile_count_for_nothing(clock):
    watch = pace.Pace()
    assert watch.images_per_second is watch.seconds_for(1) is None
    # One call of three steps compiles, then two do not; the smaller batch compiles again.
    for sizes, seconds in (((4, 4, 4), 60), ((4, 4, 4), 1), ((4, 4, 4), 2), ((3,), 30), ((3,), 1)):
        new = watch.is_new(sizes)
        if new:
            watch.stand()
        clock[0] += seconds
        if new:
            watch.go_on()
        else:
            watch.count(sizes)
    assert watch.seconds == 4
    assert watch.images_per_second == (12 + 12 + 3) / 4
    assert watch.seconds_for(21) == 21 * 4 / 7


def test_what_lies_between_calls_counts(clock):
    watch = pace.Pace()
    watch.go_on()
    clock[0] += 1
    watch.count([5])
    clock[0] += 1  # a checkpoint, or a batch that is waited for
    assert watch.images_per_second == 2.5
    watch.stand()
    watch.stand()
    clock[0] += 5
    assert watch.seconds == 2
