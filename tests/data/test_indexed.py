"""Batch (epoch, index) and its data parts are pure functions of the seed, whatever was asked before and by whom."""

import multiprocessing
import random

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from lwpd_lightning.data import CodedLoader, derive_seed, isolated_rng, seed_everything_locally
from lwpd_lightning.data.place import FixedPlace

quick = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Augmented(Dataset):
    """Sample i is i itself, followed by numbers from all three global generators."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return [float(index), random.random(), float(np.random.rand()), float(torch.rand(()))]


class FetchesMany(Augmented):
    def __getitems__(self, indices):
        return [self[index] for index in indices]


def mixed(samples):
    """A collate_fn that mixes samples at random, as mixup does."""
    batch = torch.tensor(samples)
    return batch, batch[torch.randperm(len(batch))] * random.random() * np.random.rand()


def coded(loader, data_parts=3, parts=None, seed=5, **settings):
    return CodedLoader(loader, data_parts=data_parts, parts=parts or range(data_parts), seed=seed, **settings)


def loader(size=40, batch_size=6, dataset=Augmented, **settings):
    return DataLoader(dataset(size), batch_size=batch_size, **{"shuffle": True, "collate_fn": mixed, **settings})


def assert_same(one, other):
    assert (one.epoch, one.index, one.part_samples) == (other.epoch, other.index, other.part_samples)
    assert one.parts.keys() == other.parts.keys()
    for part in one.parts:
        for left, right in zip(one.parts[part], other.parts[part], strict=True):
            assert torch.equal(left, right)


def samples(batch):
    """The samples of a batch, in the order of its data parts."""
    return [int(i) for part in sorted(batch.parts) for i in batch.parts[part][0][:, 0]]


@pytest.fixture(scope="module")
def table():
    """Every batch of three epochs, each from a loader that was asked for nothing else."""
    return {(epoch, index): coded(loader()).batch(epoch, index) for epoch in range(3) for index in range(7)}


# One batch, whoever asks.


@quick
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 6)), min_size=1, max_size=12))
def test_any_order_of_requests_gives_the_same_batches(table, requests):
    asked = coded(loader())
    for request in requests:
        assert_same(asked.batch(*request), table[request])


@quick
@given(st.sets(st.integers(0, 2), min_size=1).map(sorted), st.integers(0, 2), st.integers(0, 6))
def test_a_data_part_is_the_same_for_every_worker(table, parts, epoch, index):
    batch = coded(loader(), parts=parts).batch(epoch, index)
    assert list(batch.parts) == parts
    for part in parts:
        assert all(torch.equal(a, b) for a, b in zip(batch.parts[part], table[epoch, index].parts[part], strict=True))


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("dataset", [Augmented, FetchesMany])
def test_fetching_processes_change_nothing(table, persistent, dataset):
    asked = coded(loader(dataset=dataset, num_workers=2, persistent_workers=persistent))
    for request in [(0, 0), (0, 1), (0, 2), (0, 4), (0, 3), (1, 5), (1, 6), (0, 0), (2, 6)]:
        assert_same(asked.batch(*request), table[request])
    asked.close()
    assert multiprocessing.active_children() == []


def test_a_loader_that_was_closed_fetches_again(table):
    asked = coded(loader(num_workers=1, persistent_workers=True, timeout=20))
    for _ in range(2):
        assert_same(asked.batch(1, 2), table[1, 2])
        asked.close()
        assert multiprocessing.active_children() == []
    asked.close()


def test_other_seeds_and_epochs_give_other_batches(table):
    batch = table[0, 0]
    for other in (table[1, 0], coded(loader(), seed=6).batch(0, 0)):
        assert samples(batch) != samples(other)
        assert not set(batch.parts[0][0][:, 1].tolist()) & set(other.parts[0][0][:, 1].tolist())


def test_data_parts_and_batches_draw_unrelated_augmentation(table):
    drawn = [float(x) for batch in table.values() for part in batch.parts.values() for x in part[0][:, 1]]
    assert len(set(drawn)) == len(drawn)


def test_another_worker_gets_its_parts_under_the_announced_seed(table):
    other = coded(loader(), seed=99).for_worker((2,), seed=5)
    assert torch.equal(other.batch(1, 3).parts[2][0], table[1, 3].parts[2][0])


# What a batch is.


@quick
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 60), st.booleans(), st.booleans(), st.data())
def test_parts_partition_the_users_batches_in_order(data_parts, multiple, size, shuffle, drop_last, data):
    """Same samples, same order, as the user's own loader under the sampler's seed; a short last batch is trimmed."""
    made = loader(size, data_parts * multiple, shuffle=shuffle, drop_last=drop_last)
    epoch = data.draw(st.integers(0, 3))
    asked = coded(made, data_parts, place=FixedPlace(epoch))
    with isolated_rng():
        seed_everything_locally(derive_seed(5, epoch))
        users = list(made.batch_sampler)
    trimmed = [batch[: len(batch) - len(batch) % data_parts] for batch in users]
    assert len(asked) == sum(map(bool, trimmed))
    for index, expected in enumerate(batch for batch in trimmed if batch):
        batch = asked.batch(epoch, index)
        assert samples(batch) == expected
        assert batch.part_samples * data_parts == len(expected)
        assert {len(part[0]) for part in batch.parts.values()} == {batch.part_samples}


@pytest.mark.parametrize(
    ("size", "drop_last", "sizes"),
    [
        (12, False, [6, 6]),
        (17, False, [6, 6, 3]),
        (14, False, [6, 6]),
        (17, True, [6, 6]),
        (2, False, []),
        (0, False, []),
    ],
)
def test_a_short_last_batch_is_trimmed_or_left_out(size, drop_last, sizes):
    asked = coded(loader(size, shuffle=False, drop_last=drop_last))
    assert len(asked) == len(sizes)
    assert [len(samples(asked.batch(0, i))) for i in range(len(asked))] == sizes


def test_the_users_collate_fn_sees_one_data_part_at_a_time():
    seen = []
    plain = DataLoader(range(12), batch_size=6, collate_fn=lambda s: seen.append(list(s)) or s)
    coded(plain).batch(0, 1)
    assert seen == [[6, 7], [8, 9], [10, 11]]


def test_default_collation_and_subsets():
    data = TensorDataset(torch.arange(20), torch.arange(20) * 2.0)
    asked = coded(DataLoader(Subset(data, range(10, 20)), batch_size=4), data_parts=2)
    features, targets = asked.batch(0, 1).parts[1]
    assert features.tolist() == [16, 17]
    assert targets.tolist() == [32.0, 34.0]


# Iterating, as Lightning does.


def test_iterating_yields_the_first_own_part_and_keeps_all(table):
    asked = coded(loader(), parts=(1, 2))
    asked.place.epoch = 2
    for index, first in enumerate(asked):
        assert (asked.current.epoch, asked.current.index) == (2, index)
        assert torch.equal(first[0], table[2, index].parts[1][0])
        assert torch.equal(asked.current.parts[2][0], table[2, index].parts[2][0])
    assert index == len(asked) - 1 == 6


def test_a_resumed_epoch_goes_on_where_it_was(table):
    asked = coded(loader(), place=FixedPlace(epoch=1, index=5))
    assert [samples(asked.current) for _ in asked] == [samples(table[1, 5]), samples(table[1, 6])]


# Samplers.


class EpochSampler(Sampler):
    """Shuffles by an epoch that it must be told, as samplers of bucketed text do."""

    def __init__(self, size):
        self.size, self.epoch = size, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return self.size

    def __iter__(self):
        return iter(random.Random(self.epoch).sample(range(self.size), self.size))


class ShuffledBatches(Sampler):
    """A batch sampler of the user's own, without a batch_size attribute, drawing from the global generators."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size // 6

    def __iter__(self):
        order = [int(i) for i in np.random.permutation(self.size)]
        batches = [order[i : i + 6] for i in range(0, self.size, 6)]
        random.shuffle(batches)
        yield from batches


def generator(seed):
    return torch.Generator().manual_seed(seed)


ORDERS = {
    "shuffle": lambda: {"batch_size": 6, "shuffle": True},
    "generator": lambda: {"batch_size": 6, "shuffle": True, "generator": generator(1)},
    "weighted": lambda: {"batch_size": 6, "sampler": WeightedRandomSampler(torch.rand(40).tolist(), 36)},
    "weighted, generator": lambda: {
        "batch_size": 6,
        "sampler": WeightedRandomSampler([1.0] * 40, 36, generator=generator(2)),
    },
    "subset": lambda: {"batch_size": 6, "sampler": SubsetRandomSampler(range(4, 40))},
    "subset, generator": lambda: {"batch_size": 6, "sampler": SubsetRandomSampler(range(4, 40), generator(3))},
    "replacement": lambda: {"batch_size": 6, "sampler": RandomSampler(range(40), True, 36, generator(4))},
    "batches": lambda: {"batch_sampler": BatchSampler(RandomSampler(range(36), generator=generator(5)), 6, False)},
    "own batches": lambda: {"batch_sampler": ShuffledBatches(36)},
    "epochs": lambda: {"batch_size": 6, "sampler": EpochSampler(36)},
    "epochs in batches": lambda: {"batch_sampler": BatchSampler(EpochSampler(36), 6, True)},
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS.keys())
def test_every_sampler_is_random_and_reproducible(order):
    """Two ranks whose generators are in different states, asked in different orders, agree on every batch."""
    torch.manual_seed(0)
    here = coded(DataLoader(Augmented(40), collate_fn=mixed, **order()))
    requests = [(epoch, index) for epoch in range(2) for index in range(6)]
    forwards = {request: samples(here.batch(*request)) for request in requests}
    torch.manual_seed(0)
    with isolated_rng():
        there = coded(DataLoader(Augmented(40), collate_fn=mixed, **order()))
        torch.rand(7), np.random.rand(7), random.random()
        for own in (there.loader.generator, getattr(there.loader.sampler, "generator", None)):
            if own is not None:
                torch.rand(3, generator=own)
        backwards = {request: samples(there.batch(*request)) for request in reversed(requests)}
    assert forwards == backwards
    epochs = [[forwards[epoch, index] for index in range(6)] for epoch in range(2)]
    assert epochs[0] != epochs[1]


def test_the_users_generator_is_left_as_it_was():
    own = generator(1)
    before = own.get_state()
    asked = coded(loader(generator=own))
    asked.batch(0, 3)
    assert torch.equal(own.get_state(), before)


class Stateful(Sampler):
    """Shuffles by a generator that nobody else can seed."""

    def __init__(self, size):
        self.size, self.rng = size, np.random.default_rng(0)

    def __len__(self):
        return self.size

    def __iter__(self):
        return iter(self.rng.permutation(self.size).tolist())


def test_a_sampler_that_cannot_be_seeded_is_refused():
    """Workers that skip epochs would disagree with the others about the samples of a batch."""
    with pytest.raises(ValueError, match=r"^the training loader's Stateful .*set_epoch.*\.$"):
        len(coded(loader(sampler=Stateful(36), shuffle=None)))


# Random generators.


@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_randomness_is_untouched(num_workers):
    def draw():
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    with isolated_rng():
        seed_everything_locally(3)
        expected = [draw() for _ in range(4)]
    with isolated_rng():
        seed_everything_locally(3)
        asked = coded(loader(num_workers=num_workers))
        drawn = [draw()]
        for request in ((0, 0), (0, 1), (1, 0)):
            asked.batch(*request)
            drawn.append(draw())
        asked.close()
    assert drawn == expected


@quick
@given(st.lists(st.tuples(st.integers(0, 2**63), st.integers(0, 100)), unique=True, min_size=2))
def test_seeds_differ_and_suit_all_generators(keys):
    seeds = [derive_seed(*key) for key in keys]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    with isolated_rng():
        for seed in seeds:
            seed_everything_locally(seed)


# Refusals.


class Resumable(DataLoader):
    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


class Overriding(DataLoader):
    def __iter__(self):
        return super().__iter__()


def refusal(made, data_parts=4):
    with pytest.raises(ValueError, match=r"^the training|^batch_size") as caught:
        coded(made, data_parts)
    sentence = str(caught.value)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    return sentence


def test_what_cannot_be_cut_is_refused():
    assert "the training loader is a list:" in refusal([1, 2])
    assert "Overriding overrides __iter__" in refusal(Overriding(range(8), batch_size=4))
    assert "Resumable has a load_state_dict" in refusal(Resumable(range(8), batch_size=4))
    assert "batch_size=None" in refusal(DataLoader(range(8), batch_size=None))
    distributed = DistributedSampler(range(8), num_replicas=2, rank=0)
    assert "DistributedSampler" in refusal(DataLoader(range(8), batch_size=4, sampler=distributed))


@pytest.mark.parametrize(("batch_size", "advice"), [(6, "use 4 or 8."), (3, "use 4 or 8."), (13, "use 12 or 16.")])
def test_a_batch_size_that_the_parts_do_not_divide_is_refused(batch_size, advice):
    sentence = refusal(DataLoader(range(40), batch_size=batch_size))
    assert (
        f"batch_size={batch_size} is the whole update's batch, which 4 data parts do not divide: {advice}" == sentence
    )
    for word in advice.removesuffix(".").split()[1::2]:
        coded(DataLoader(range(40), batch_size=int(word)), 4)


def test_uneven_batches_of_ones_own_are_refused_by_number():
    class Uneven(Sampler):
        def __iter__(self):
            return iter([list(range(8)), list(range(6)), list(range(3))])

    asked = coded(DataLoader(range(8), batch_sampler=Uneven()), 4)
    with pytest.raises(ValueError, match=r"^batch 1 has 6 samples, which 4 data parts do not divide: .* of 4\.$"):
        asked.batch(0, 0)


def test_sequential_order_is_the_datasets():
    asked = coded(DataLoader(range(12), batch_sampler=BatchSampler(SequentialSampler(range(12)), 6, False)), 2)
    assert [asked.batch(3, i).parts[1].tolist() for i in range(2)] == [[3, 4, 5], [9, 10, 11]]
