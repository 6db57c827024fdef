import jax
import numpy as np
import pytest

from refine_jax.datasets.feed import Feed, steps_per_epoch


def epoch_of(feed, epoch):
    first = epoch * feed.steps_per_epoch
    return [feed.indices(step) for step in range(first, first + feed.steps_per_epoch)]


@pytest.mark.parametrize(("count", "batch_size"), [(10, 3), (12, 3), (5, 5), (7, 1)])
def test_an_epoch_shows_every_example_once(count, batch_size):
    feed = Feed(count, batch_size, jax.random.key(0), keep_last=True)
    for epoch in (0, 1, 5):
        batches = epoch_of(feed, epoch)
        assert sorted(np.concatenate(batches)) == list(range(count))
        assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
        assert len(batches[-1]) == (count % batch_size or batch_size)


def test_what_is_left_over_may_be_left_out():
    feed = Feed(10, 3, jax.random.key(0), keep_last=False)
    assert feed.steps_per_epoch == 3
    shown = [np.concatenate(epoch_of(feed, epoch)) for epoch in range(20)]
    assert all(len(set(epoch)) == 9 for epoch in shown)
    # Another one every time, so none is never seen.
    assert set(np.concatenate(shown)) == set(range(10))


def test_every_epoch_has_an_order_of_its_own():
    feed = Feed(50, 50, jax.random.key(0), keep_last=True)
    orders = {tuple(feed.indices(epoch).tolist()) for epoch in range(10)}
    assert len(orders) == 10


def test_another_key_is_another_order():
    orders = [Feed(50, 50, jax.random.key(seed), keep_last=True).indices(0).tolist() for seed in (0, 1)]
    assert orders[0] != orders[1]


def test_a_training_taken_up_anywhere_gets_the_batches_it_would_have_had():
    make = lambda: Feed(20, 6, jax.random.key(3), keep_last=True)  # noqa: E731
    whole = make()
    batches = [whole.indices(step) for step in range(12)]
    for step in (11, 5, 0, 8, 3):
        np.testing.assert_array_equal(make().indices(step), batches[step])
        np.testing.assert_array_equal(whole.indices(step), batches[step])
    assert batches[0].dtype == np.int32


@pytest.mark.parametrize("batch_size", [0, -1, 11])
def test_a_batch_larger_than_the_data_is_refused(batch_size):
    with pytest.raises(ValueError, match=rf"batch_size = {batch_size}: allowed: 1 to 10"):
        Feed(10, batch_size, jax.random.key(0), keep_last=True)


@pytest.mark.parametrize(("keep_last", "steps"), [(True, 4), (False, 3)])
def test_steps_of_an_epoch(keep_last, steps):
    assert steps_per_epoch(10, 3, keep_last=keep_last) == steps
    assert steps_per_epoch(9, 3, keep_last=keep_last) == 3
