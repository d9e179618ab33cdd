"""Batches of an iterable dataset: one process' stream, whoever reads which data parts of it in which order."""

import multiprocessing
import pickle
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from lwpd_lightning.data import CodedLoader, isolated_rng, seed_everything_locally

quick = settings(deadline=None, max_examples=30)


class Numbers(IterableDataset):
    """0, 1, 2, ...; fetching processes share them out, as torch documents it."""

    def __init__(self, size):
        self.size = size

    def __iter__(self):
        info = get_worker_info()
        return iter(range(self.size)) if info is None else iter(range(info.id, self.size, info.num_workers))


class Sized(Numbers):
    def __len__(self):
        return self.size


class Shuffled(Numbers):
    """Shuffles and augments with numbers from all three global generators, as it goes."""

    def __iter__(self):
        numbers = list(super().__iter__())
        random.shuffle(numbers)
        for number in numbers:
            yield [float(number), random.random(), float(np.random.rand()), float(torch.rand(()))]


def mixed(samples):
    batch = torch.tensor(samples)
    return batch, batch[torch.randperm(len(batch))] * random.random() * np.random.rand()


def coded(loader, data_parts=3, parts=None, seed=5, **settings):
    return CodedLoader(loader, data_parts=data_parts, parts=parts or range(data_parts), seed=seed, **settings)


def shuffled(size=40, batch_size=6, **settings):
    return DataLoader(Shuffled(size), batch_size=batch_size, collate_fn=mixed, **settings)


def count(loader, epoch=0):
    return next(index for index in range(1000) if not loader.has(epoch, index))


def samples(batch):
    return [int(i) for part in sorted(batch.parts) for i in batch.parts[part]]


def assert_same(one, other):
    assert (one.epoch, one.index, one.part_samples) == (other.epoch, other.index, other.part_samples)
    for part in one.parts.keys() & other.parts.keys():
        for left, right in zip(one.parts[part], other.parts[part], strict=True):
            assert torch.equal(left, right)


@pytest.fixture(scope="module")
def table():
    """Every batch of three epochs, each from a loader that was asked for nothing else."""
    return {(epoch, index): coded(shuffled()).batch(epoch, index) for epoch in range(3) for index in range(7)}


# What a batch is.


@quick
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 60), st.booleans())
def test_parts_partition_the_users_batches_in_order(data_parts, multiple, size, drop_last):
    plain = DataLoader(Numbers(size), batch_size=data_parts * multiple, drop_last=drop_last)
    users = [batch.tolist() for batch in plain]
    trimmed = [batch[: len(batch) - len(batch) % data_parts] for batch in users]
    trimmed = [batch for batch in trimmed if batch]
    loader = coded(plain, data_parts)
    assert count(loader) == len(trimmed)
    for index, expected in enumerate(trimmed):
        batch = loader.batch(0, index)
        assert samples(batch) == expected
        assert batch.part_samples * data_parts == len(expected)


@pytest.mark.parametrize("drop_last", [False, True])
def test_fetching_processes_take_turns_as_in_a_single_process(drop_last):
    """Each ends with a short batch of its own, so that they come in mid-epoch too."""
    plain = DataLoader(Numbers(41), batch_size=6, num_workers=2, drop_last=drop_last)
    trimmed = [batch for batch in ([*b.tolist()][: len(b) - len(b) % 3] for b in plain) if batch]
    loader = coded(plain)
    assert [samples(loader.batch(0, index)) for index in range(count(loader))] == trimmed
    assert trimmed == sorted(trimmed, key=len, reverse=True) or not drop_last
    loader.close()
    assert multiprocessing.active_children() == []


def test_the_collate_fn_sees_the_samples_of_own_parts_only():
    seen = []
    loader = coded(DataLoader(Numbers(24), batch_size=6, collate_fn=lambda s: seen.append(list(s)) or s), parts=(0, 2))
    loader = loader.for_worker((0, 2), seed=5)
    assert loader.batch(0, 2).parts == {0: [12, 13], 2: [16, 17]}
    assert seen == [[12, 13], [16, 17]]


# One batch, whoever asks.


@quick
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 6)), min_size=1, max_size=12))
def test_any_order_of_requests_gives_the_same_batches(table, requests):
    loader = coded(shuffled())
    for request in requests:
        assert loader.has(*request)
        assert_same(loader.batch(*request), table[request])


@quick
@given(st.sets(st.integers(0, 2), min_size=1).map(sorted), st.integers(0, 2), st.integers(0, 6))
def test_a_data_part_is_the_same_for_every_worker(table, parts, epoch, index):
    batch = coded(shuffled(), seed=9).for_worker(parts, seed=5).batch(epoch, index)
    assert list(batch.parts) == parts
    assert_same(batch, table[epoch, index])


def test_epochs_seeds_and_parts_are_random(table):
    firsts = [table[epoch, 0].parts[0] for epoch in range(3)] + [coded(shuffled(), seed=6).batch(0, 0).parts[0]]
    assert len({tuple(first[0].flatten().tolist()) for first in firsts}) == 4
    mixtures = [part[1] / part[0].clamp(min=1e-3) for part in table[0, 0].parts.values()]
    assert len({tuple(mixture.flatten().tolist()) for mixture in mixtures}) == 3


def test_fetching_processes_read_the_same_whoever_asks():
    """Also when a user's worker_init_fn tells ranks apart, as Lightning's does."""
    requests = [(0, 0), (0, 4), (1, 2), (0, 1)]
    one, other = (
        coded(shuffled(num_workers=2, persistent_workers=True, worker_init_fn=init))
        for init in (None, lambda number: seed_everything_locally(99))
    )
    with isolated_rng():
        forwards = {request: one.batch(*request) for request in requests}
        backwards = {request: other.batch(*request) for request in reversed(requests)}
    for request in requests:
        assert_same(forwards[request], backwards[request])
    assert not torch.equal(forwards[0, 0].parts[0][0], forwards[1, 2].parts[0][0])
    one.close(), other.close()
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("num_workers", [0, 1])
def test_training_randomness_is_untouched(num_workers):
    def draw():
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    with isolated_rng():
        seed_everything_locally(3)
        expected = [draw() for _ in range(4)]
    with isolated_rng():
        seed_everything_locally(3)
        loader = coded(shuffled(num_workers=num_workers))
        drawn = [draw()]
        for request in ((0, 0), (0, 1), (1, 0)):
            loader.batch(*request)
            drawn.append(draw())
        loader.close()
    assert drawn == expected


# Ends.


def test_a_stream_tells_its_end_one_batch_ahead():
    loader = coded(DataLoader(Numbers(18), batch_size=6))
    assert [loader.has(0, index) for index in (0, 2, 3, 4, 1)] == [True, True, False, False, True]
    with pytest.raises(IndexError, match=r"^epoch 0 has no batch 3\.$"):
        loader.batch(0, 3)
    assert samples(loader.batch(0, 2)) == [12, 13, 14, 15, 16, 17]
    assert not coded(DataLoader(Numbers(0), batch_size=6)).has(0, 0)
    assert not coded(DataLoader(Numbers(2), batch_size=6)).has(0, 0)


@pytest.mark.parametrize(
    ("size", "drop_last", "length"), [(18, False, 3), (20, False, 3), (21, False, 4), (23, True, 3)]
)
def test_the_length_of_a_dataset_that_has_one(size, drop_last, length):
    loader = coded(DataLoader(Sized(size), batch_size=6, drop_last=drop_last))
    assert len(loader) == loader.length(4) == count(loader) == length
    unsized = coded(DataLoader(Numbers(size), batch_size=6))
    assert unsized.length(0) is None
    with pytest.raises(TypeError, match="is not known before"):
        len(unsized)


def test_what_was_read_ahead_is_not_read_again():
    reads = []

    class Noted(Numbers):
        def __iter__(self):
            for number in super().__iter__():
                reads.append(number)
                yield number

    loader = coded(DataLoader(Noted(24), batch_size=6)).for_worker(range(3), 5)
    for index in range(4):
        assert samples(loader.batch(0, index))[0] == 6 * index
        assert loader.has(0, index + 1) == (index < 3)
    assert reads == list(range(24))


def test_a_stream_that_is_being_read_can_be_pickled(table):
    loader = coded(shuffled())
    loader.batch(0, 2)
    assert_same(pickle.loads(pickle.dumps(loader)).batch(0, 3), table[0, 3])
    assert_same(loader.batch(0, 3), table[0, 3])


# Refusals.


class GoesOn(Numbers):
    """Carries on where the last reader stopped."""

    def __init__(self, size):
        super().__init__(size)
        self.rest = iter(range(size))

    def __iter__(self):
        return self.rest


class OwnSeed(Numbers):
    def __init__(self, size):
        super().__init__(size)
        self.rng = np.random.default_rng(0)

    def __iter__(self):
        return iter(self.rng.permutation(self.size).tolist())


@pytest.mark.parametrize("dataset", [GoesOn, OwnSeed])
def test_a_stream_that_is_other_each_time_is_refused(dataset):
    """Workers that read on from elsewhere would disagree with the others about the samples of a batch."""
    with pytest.raises(ValueError, match=rf"^the training set {dataset.__name__} gives other samples .*again.*\.$"):
        coded(DataLoader(dataset(60), batch_size=6)).batch(0, 0)


def test_a_batch_size_that_the_parts_do_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"^batch_size=8 .* 3 data parts do not divide: use 6 or 9\.$"):
        coded(DataLoader(Numbers(60), batch_size=8))
    with pytest.raises(ValueError, match="batch_size=None"):
        coded(DataLoader(Numbers(60), batch_size=None))
