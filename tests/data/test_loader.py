"""A CodedLoader is the user's loader in everything but its iteration."""

import copy
import io
import pickle
import random
import time

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler, get_worker_info

from lwpd_lightning.data import CodedLoader
from lwpd_lightning.data.place import FixedPlace


def coded(loader, data_parts=2, parts=(0, 1), seed=5, **settings):
    return CodedLoader(loader, data_parts=data_parts, parts=parts, seed=seed, **settings)


def numbers(batch):
    return [part.tolist() for part in batch.parts.values()]


class Named(DataLoader):
    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.title = "mine"


# What the user's loader has is found here too.


def test_attributes_are_those_of_the_users_loader():
    plain = Named(range(12), batch_size=4, num_workers=1, shuffle=True)
    loader = coded(plain)
    for name in ("dataset", "batch_size", "sampler", "batch_sampler", "num_workers", "collate_fn", "title"):
        assert getattr(loader, name) is getattr(plain, name), name
    assert not hasattr(loader, "no_such_thing")
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = loader.no_such_thing


def collate(samples):
    return torch.tensor(samples)


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("copied", ["pickle", "copy.copy", "copy.deepcopy", "torch.save"])
def test_a_loader_that_is_being_read_can_be_copied(copied, num_workers):
    settings = {"num_workers": num_workers, "persistent_workers": bool(num_workers)}
    loader = coded(DataLoader(range(24), batch_size=4, shuffle=True, collate_fn=collate, **settings))
    iteration = iter(loader)
    next(iteration)
    if copied == "pickle":
        other, _ = pickle.loads(pickle.dumps((loader, iteration)))
    elif copied == "torch.save":
        torch.save(loader, file := io.BytesIO())
        file.seek(0)
        other = torch.load(file, weights_only=False)
    else:
        other = getattr(copy, copied.split(".")[1])(loader)
    assert len(other) == 6
    assert [numbers(other.batch(1, i)) for i in (0, 3)] == [numbers(loader.batch(1, i)) for i in (0, 3)]
    assert next(iteration) is not None
    other.close(), loader.close()


# What is told of batches.


class Slow(Dataset):
    """Sample 5 takes a while."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        if index == 5:
            time.sleep(0.2)
        return index


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_time_that_fetching_took(num_workers):
    loader = coded(
        DataLoader(Slow(), batch_size=4, num_workers=num_workers, prefetch_factor=1 if num_workers else None)
    )
    assert loader.batch(0, 1).fetch_s >= 0.2
    loader.close()
    if not num_workers:
        assert 0 <= loader.batch(0, 0).fetch_s < 0.2


def test_a_batch_that_does_not_exist():
    loader = coded(DataLoader(range(12), batch_size=4))
    assert [loader.has(0, index) for index in (0, 2, 3, 30)] == [True, True, False, False]
    with pytest.raises(IndexError, match=r"^epoch 2 has no batch 3\.$"):
        loader.batch(2, 3)


class Changing(Sampler):
    """12, 4, 20 samples, in turn."""

    def __init__(self):
        self.epoch, self.drawn = 0, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return [12, 4, 20][self.epoch % 3]

    def __iter__(self):
        self.drawn += 1
        return iter(range(100 * self.epoch, 100 * self.epoch + len(self)))


def test_every_epoch_has_a_length_of_its_own():
    sampler = Changing()
    loader = coded(DataLoader(range(1000), batch_size=4, sampler=sampler))
    assert [loader.length(epoch) for epoch in (0, 1, 2, 4, 5)] == [3, 1, 5, 1, 5]
    assert numbers(loader.batch(4, 0)) == [[400, 401], [402, 403]]
    assert [loader.has(1, index) for index in (0, 1)] == [True, False]
    drawn = sampler.drawn
    for _ in range(3):
        assert [loader.length(epoch) for epoch in (1, 2)] == [1, 5]
    assert sampler.drawn <= drawn + 2  # two neighbouring epochs are kept


def test_len_is_that_of_the_epoch_that_was_begun():
    loader = coded(DataLoader(range(1000), batch_size=4, sampler=Changing()), place=FixedPlace(2))
    assert len(loader) == 5
    loader.place.epoch = 1
    assert len(loader) == 5
    iter(loader)
    assert len(loader) == 1


def test_who_looks_at_the_data_changes_nothing_for_the_loop():
    class Loop(FixedPlace):
        def start_of(self, iteration):
            return self.index if iteration is own else None

    place = Loop(epoch=1)
    loader = coded(DataLoader(range(16), batch_size=4, shuffle=True), place=place)
    own = iter(loader)
    seen = []
    for index in range(4):
        place.trained = 1, index
        first = next(own)
        looked = next(iter(loader))
        assert torch.equal(looked, loader.batch(1, 0).parts[0])
        assert loader.current.index == index
        assert torch.equal(loader.current.parts[0], first)
        seen += [number for part in numbers(loader.current) for number in part]
        place.index = index + 1
    assert sorted(seen) == list(range(16))


# Samplers.


class Endless(Sampler):
    """Never ends, and draws from all generators."""

    def __iter__(self):
        while True:
            yield (random.randrange(10) + int(np.random.randint(10)) + int(torch.randint(10, ()))) % 16


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_sampler_without_an_end(num_workers):
    def made():
        return coded(DataLoader(range(16), batch_size=4, sampler=Endless(), num_workers=num_workers))

    loader, other = made(), made()
    with pytest.raises(TypeError, match="is not known"):
        len(loader)
    assert loader.length(0) is None
    assert loader.fingerprint() == other.fingerprint()
    forwards = [numbers(loader.batch(epoch, index)) for epoch in range(2) for index in range(5)]
    backwards = [numbers(other.batch(epoch, index)) for epoch in (1, 0) for index in (4, 3, 2, 1, 0)]
    assert forwards == backwards[::-1]
    assert forwards[:5] != forwards[5:]
    assert loader.has(0, 1000)
    loader.close(), other.close()


class Wandering(Sampler):
    """Without an end or a seed."""

    def __init__(self):
        self.at = 0

    def __iter__(self):
        while True:
            self.at += 1
            yield self.at % 16


def test_an_endless_sampler_that_cannot_be_seeded_is_refused():
    with pytest.raises(ValueError, match=r"^the training loader's Wandering orders an epoch anew each time"):
        coded(DataLoader(range(16), batch_size=4, sampler=Wandering())).batch(0, 0)


class Pairs(Sampler):
    """Yields a batch's indices as tensors of two values."""

    def __len__(self):
        return 2

    def __iter__(self):
        return iter(torch.arange(8).reshape(2, 2, 2) + torch.randint(100, ()))


class Sums(Dataset):
    def __getitem__(self, index):
        return int(index.sum())


def test_indices_may_be_tensors():
    loader = coded(DataLoader(Sums(), batch_sampler=Pairs()))
    offset = loader.batch(0, 0).parts[0].item() - 1
    assert numbers(loader.batch(0, 1)) == [[9 + offset], [13 + offset]]


def test_names_as_indices():
    data = {name: position for position, name in enumerate("abcdefgh")}
    loader = coded(DataLoader(data, batch_sampler=BatchSampler(list(data), 4, False), collate_fn=list))
    assert [loader.batch(0, i).parts for i in range(2)] == [{0: [0, 1], 1: [2, 3]}, {0: [4, 5], 1: [6, 7]}]


# Fetching processes.


class Opened(Dataset):
    """Must be opened in each fetching process, which is told as torch documents it."""

    def __init__(self):
        self.opened = False

    def __len__(self):
        return 8

    def __getitem__(self, index):
        assert self.opened
        assert get_worker_info().dataset is self
        return index


def open_dataset(number):
    get_worker_info().dataset.opened = True


def test_worker_init_fn_finds_the_users_dataset():
    loader = coded(DataLoader(Opened(), batch_size=4, num_workers=1, worker_init_fn=open_dataset))
    assert numbers(loader.batch(0, 1)) == [[4, 5], [6, 7]]
    loader.close()
