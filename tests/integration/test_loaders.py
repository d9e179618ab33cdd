"""Whatever loader Lightning takes: at K = n the same weights as one process that reads it."""

import copy
import itertools
import os
import pickle
import random
import tempfile
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Sampler,
    SequentialSampler,
    Subset,
    get_worker_info,
)

from lwpd_lightning import LWPDStrategy, gradient_code, uncoded
from lwpd_lightning.data import following, loader_of, training_loader
from tests.integration.models import Classifier, classification, loader, quiet_trainer, sgd

EXACT = {"decoder": "exact", "stale": "drop"}
CODES = {"uncoded": (lambda: uncoded(2), {}), "exact": (lambda: gradient_code(3, 1), EXACT)}  # rank 0: 2 parts of 3
unshuffled = partial(loader, batch_size=72)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def coded(model, data, code="uncoded", resume=None, **settings):
    make, exact = CODES[code]
    strategy = LWPDStrategy(code=make(), timeout_s=60, **exact)
    trainer = quiet_trainer(devices=strategy.settings.code.n, strategy=strategy, **settings)
    trainer.fit(model, data, ckpt_path=resume, weights_only=None if resume is None else False)
    return trainer


def alone(model, data, **settings):
    trainer = quiet_trainer(devices=1, **settings)
    trainer.fit(model, data)
    return trainer


def assert_same(make_model, make_data, code="uncoded", make_callbacks=lambda: [], **settings):
    """Train both ways; returns both trainers."""
    models = make_model(), make_model()
    trainers = [
        run(model, make_data(), callbacks=make_callbacks(), **settings, **more)
        for run, model, more in zip((coded, alone), models, ({"code": code}, {}), strict=True)
    ]
    assert trainers[0].global_step == trainers[1].global_step > 0
    assert trainers[0].current_epoch == trainers[1].current_epoch
    ours, theirs = map(weights, models)
    assert torch.linalg.vector_norm(ours - theirs) <= 1e-5 * torch.linalg.vector_norm(theirs)
    assert torch.linalg.vector_norm(theirs - weights(make_model())) > 1e-2 * torch.linalg.vector_norm(theirs)
    return trainers


# Collections that hold one loader.


class _Structured(Classifier):
    """Trains otherwise when the batch is not in the collection that its loader is in."""

    def __init__(self, kind):
        super().__init__(sgd)
        self.kind = kind

    def training_step(self, batch, batch_idx):
        assert type(batch) is self.kind
        inner = batch["a"] if isinstance(batch, dict) else batch[0]
        x, y = inner if self.kind is not dict or not isinstance(inner, list) or len(inner) != 1 else inner[0]
        return torch.nn.functional.cross_entropy(self.net(x), y)


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize(
    ("kind", "collection"),
    [
        (list, lambda one: [one]),
        (dict, lambda one: {"a": one}),
        (dict, lambda one: {"a": [one]}),
        (tuple, lambda one: (one,)),
    ],
    ids=["list", "dictionary", "nested", "tuple"],
)
def test_every_rank_sees_the_collection_that_the_loader_is_in(kind, collection, code):
    assert_same(lambda: _Structured(kind), lambda: collection(unshuffled()), code, max_epochs=2)


# Epochs of unequal length.


class _Shrinking(Sampler):
    """An epoch of its own length, as set_epoch says."""

    def __init__(self, lengths):
        self.lengths, self.epoch = lengths, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return self.lengths[self.epoch]

    def __iter__(self):
        start = 17 * self.epoch
        return iter(range(start, start + len(self)))


class _LastBatches(pl.Callback):
    def __init__(self):
        self.last, self.trained = [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.trained.append((trainer.current_epoch, batch_idx))
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self.last.append((trainer.current_epoch, batch_idx))


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize(
    ("lengths", "batches"),
    [([360, 144, 288], [5, 2, 4]), ([144, 360, 72], [2, 2, 1])],  # Lightning cuts longer ones to the first's
    ids=["shorter", "longer"],
)
def test_epochs_of_other_lengths_than_the_first(lengths, batches, code):
    seen = _LastBatches()
    trainers = assert_same(
        partial(Classifier, sgd),
        lambda: loader(sampler=_Shrinking(lengths), batch_size=72),
        code,
        make_callbacks=lambda: [seen],
        max_epochs=3,
    )
    expected = [(epoch, index) for epoch, count in enumerate(batches) for index in range(count)]
    assert seen.trained == 2 * expected
    assert trainers[0].strategy.failures == []


# Streams.


class _Stream(IterableDataset):
    """Classification's samples in order, shared out among fetching processes as torch documents it."""

    def __init__(self, samples=396):
        self.samples = samples

    def __iter__(self):
        info = get_worker_info()
        first, step = (info.id, info.num_workers) if info is not None else (0, 1)
        x, y = classification(self.samples).tensors
        for index in range(first, len(x), step):
            yield x[index], y[index]


class _Sized(_Stream):
    def __len__(self):
        return self.samples


class _Reshuffled(_Stream):
    """Draws its order anew every epoch."""

    def __iter__(self):
        yield from random.sample(list(super().__iter__()), self.samples)


def stream(samples=360, dataset=_Stream, **settings):
    return loader(dataset(samples), batch_size=72, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize(
    ("make_data", "batches"),
    [
        (lambda: stream(dataset=_Sized), 5),
        (lambda: stream(), 5),
        (lambda: stream(396), 6),  # a last batch of 36
        (lambda: stream(396, drop_last=True), 5),
        (lambda: stream(432, num_workers=2), 6),
    ],
    ids=["sized", "unsized", "short_last", "drop_last", "processes"],
)
def test_a_stream_trains_as_in_one_process(make_data, batches, code):
    seen = [_LastBatches(), _LastBatches()]
    making = iter(seen)
    assert_same(partial(Classifier, sgd), make_data, code, make_callbacks=lambda: [next(making)], max_epochs=3)
    assert seen[0].trained == seen[1].trained == [(e, i) for e in range(3) for i in range(batches)]
    assert seen[0].last == seen[1].last == [(e, batches - 1) for e in range(3)]


@pytest.mark.parametrize(
    ("make_data", "batches"),
    [(stream, [5, 5, 5]), (lambda: loader(sampler=_Shrinking([360, 144, 216])), [5, 2, 3])],
    ids=["stream", "shorter_epochs"],
)
def test_accumulating_to_the_end_of_an_epoch(make_data, batches):
    trainers = assert_same(partial(Classifier, sgd), make_data, max_epochs=3, accumulate_grad_batches=2)
    assert trainers[0].global_step == sum((count + 1) // 2 for count in batches)


class _Overstated(_Stream):
    """Says that it is longer than it is."""

    def __len__(self):
        return self.samples + 120


def test_a_stream_that_is_shorter_than_it_says():
    """Lightning alone does not notice the last batch of an epoch."""
    seen = _LastBatches()
    coded(Classifier(sgd), stream(360, _Overstated), max_epochs=2, callbacks=[seen])
    assert seen.trained == [(e, i) for e in range(2) for i in range(5)]
    assert seen.last == [(0, 4), (1, 4)]


class _Validations(pl.Callback):
    def __init__(self):
        self.at = []

    def on_validation_end(self, trainer, module):
        self.at.append(trainer.global_step)


@pytest.mark.parametrize("limits", [{"limit_train_batches": 3}, {}, {"val_check_interval": 2}], ids=str)
def test_limits_and_validation_within_a_stream(limits):
    seen = [_Validations(), _Validations()]
    making = iter(seen)

    class WithValidation(Classifier):
        def val_dataloader(self):
            return loader(batch_size=360)

    trainers = assert_same(
        partial(WithValidation, sgd), stream, make_callbacks=lambda: [next(making)], max_epochs=2, **limits
    )
    assert seen[0].at == seen[1].at != []
    metrics = [trainer.callback_metrics["val_loss"] for trainer in trainers]
    torch.testing.assert_close(*metrics, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("dataset", [_Stream, _Sized, _Reshuffled])
@pytest.mark.parametrize("stop_at", [3, 5, 7, 10])
def test_a_stream_goes_on_in_mid_epoch(tmp_path, dataset, stop_at, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    straight, resumed = Classifier(sgd), Classifier(sgd)
    coded(straight, stream(dataset=dataset), max_epochs=3)
    keep = ModelCheckpoint(tmp_path, filename="stopped", every_n_train_steps=stop_at)
    saving = {"callbacks": [keep], "enable_checkpointing": True}
    coded(Classifier(sgd), stream(dataset=dataset), max_steps=stop_at + 1, max_epochs=-1, **saving)
    seen = _LastBatches()
    trainer = coded(resumed, stream(dataset=dataset), max_epochs=3, callbacks=[seen], resume=tmp_path / "stopped.ckpt")
    assert trainer.global_step == 15
    assert seen.trained == [(e, i) for e in range(3) for i in range(5) if 5 * e + i >= stop_at]
    torch.testing.assert_close(weights(resumed), weights(straight), rtol=1e-5, atol=1e-6)


class _SometimesEmpty(_Stream):
    """Of some epochs there is nothing, as the seed says."""

    def __iter__(self):
        if torch.rand(()) < 0.5:
            yield from super().__iter__()


def test_an_epoch_without_a_batch_is_passed_over(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "2")
    seen = _LastBatches()
    trainer = coded(Classifier(sgd), stream(144, _SometimesEmpty), max_epochs=8, callbacks=[seen])
    epochs = sorted({epoch for epoch, _ in seen.trained})
    assert seen.trained == [(epoch, index) for epoch in epochs for index in range(2)]
    assert 0 < len(epochs) < 8
    assert any(epoch - 1 not in epochs for epoch in epochs)
    assert trainer.current_epoch == 8
    assert trainer.strategy.failures == []


class _GoesOn(_Stream):
    def __init__(self, samples):
        super().__init__(samples)
        self.rest = super().__iter__()

    def __iter__(self):
        return self.rest


def test_a_stream_that_cannot_be_read_again_is_refused():
    with pytest.raises(ValueError, match="training set _GoesOn gives other samples when an epoch is read again"):
        coded(Classifier(sgd), stream(dataset=_GoesOn), max_epochs=1)


# Loaders that are made anew.


class _Reloading(Classifier):
    """Every loader has samples of its own, by the epoch and how often one was made."""

    def __init__(self):
        super().__init__(sgd)
        self.made = []

    def train_dataloader(self):
        self.made.append(self.trainer.current_epoch)
        start = 40 * self.trainer.current_epoch + 8 * len(self.made)
        return loader(Subset(classification(), range(start, start + 216 - 72 * (len(self.made) % 2))))


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("every", [1, 2])
def test_reloading_every_n_epochs(every, code):
    trainers = assert_same(_Reloading, lambda: None, code, max_epochs=5, reload_dataloaders_every_n_epochs=every)
    assert trainers[0].lightning_module.made == trainers[1].lightning_module.made == list(range(0, 5, every))


class _Drawing(Classifier):
    """Every loader has samples that are drawn when it is made."""

    def train_dataloader(self):
        return loader(Subset(classification(), torch.randperm(720)[:144].tolist()))


def test_loaders_that_are_drawn_anew_are_the_same_on_every_rank(monkeypatch):
    """Data parts of unlike loaders would not add up to one batch, however it is cut."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    after = []
    for code in CODES:
        torch.manual_seed(0)
        model = _Drawing(sgd)
        coded(model, None, code, max_epochs=4, reload_dataloaders_every_n_epochs=1)
        after.append(weights(model))
    torch.testing.assert_close(*after, rtol=1e-5, atol=1e-6)


def test_a_worker_makes_up_for_reloads_of_epochs_that_it_skipped():
    trainer = quiet_trainer(devices=1, max_epochs=1, reload_dataloaders_every_n_epochs=2, strategy=_Own())
    trainer.fit(model := _Reloading())
    mine = loader_of(trainer).for_worker((1,), seed=7)
    assert following(trainer, mine, 1) is mine
    later = following(trainer, mine, 7)
    assert model.made == [0, 2, 4, 6]
    assert trainer.current_epoch == 7
    assert (later.parts, later.seed, later.dataset) == ((1,), 7, trainer.train_dataloader.dataset)
    assert following(trainer, later, 7) is later
    assert following(trainer, later, 8) is not later
    assert model.made[-1] == 8


class _Own(SingleDeviceStrategy):
    """Cuts batches into two data parts, and trains with the first."""

    def __init__(self):
        super().__init__(torch.device("cpu"))

    def process_dataloader(self, dataloader):
        return training_loader(self.lightning_module.trainer, dataloader, data_parts=2, parts=(0,), seed=5)


# What else Lightning does with a loader.


@pytest.mark.parametrize(
    "settings",
    [
        {"overfit_batches": 3},
        {"overfit_batches": 0.3},
        {"limit_train_batches": 0.55},
        {"fast_dev_run": 3},
        {"max_steps": 7, "max_epochs": -1},
        {"min_steps": 25},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["alone", pytest.param("in a list", marks=pytest.mark.slow)])
def test_the_trainers_ways_to_cut_an_epoch(settings, kind):
    data = (lambda: [unshuffled()]) if kind == "in a list" else unshuffled
    make_model = partial(_Structured, list) if kind == "in a list" else partial(Classifier, sgd)
    assert_same(make_model, data, **{"max_epochs": 2, **settings})


class _Loader(DataLoader):
    pass


def test_overfitting_turns_shuffling_off():
    """Lightning makes the user's loader anew."""

    def shuffled():
        return _Loader(classification(), batch_size=72, shuffle=True)

    for trainer in assert_same(partial(Classifier, sgd), shuffled, max_epochs=2, overfit_batches=3):
        assert isinstance(trainer.train_dataloader.sampler, SequentialSampler)
    assert isinstance(loader_of(coded(Classifier(sgd), shuffled(), max_steps=2, overfit_batches=2)).loader, _Loader)


class _Endless(Sampler):
    def __iter__(self):
        return itertools.cycle(range(700))


def test_a_sampler_without_an_end():
    assert_same(partial(Classifier, sgd), lambda: loader(sampler=_Endless()), max_steps=14, max_epochs=-1)
    assert_same(partial(Classifier, sgd), lambda: loader(sampler=_Endless()), max_epochs=2, limit_train_batches=7)


class _Looking(pl.Callback):
    """Looks at the training data wherever it can."""

    def __init__(self):
        self.seen = []

    def look(self, trainer, *args):
        assert len(trainer.train_dataloader.dataset) == 720
        assert trainer.train_dataloader.batch_size == 72
        self.seen.append(next(iter(trainer.train_dataloader))[1])

    on_train_start = on_train_epoch_start = on_train_batch_start = on_before_zero_grad = on_after_backward = look
    on_train_batch_end = on_train_epoch_end = look


def test_callbacks_may_look_at_the_data():
    looking = [_Looking(), _Looking()]
    making = iter(looking)
    assert_same(partial(Classifier, sgd), unshuffled, "exact", lambda: [next(making)], max_epochs=2)
    assert len(looking[0].seen) == len(looking[1].seen) > 40
    for ours, theirs in zip(*(callback.seen for callback in looking), strict=True):
        assert torch.equal(ours, theirs[: len(ours)])


def test_a_combined_loader_may_be_fitted_again():
    models = Classifier(sgd), Classifier(sgd)
    for model, run in zip(models, (coded, alone), strict=True):
        combined = CombinedLoader(unshuffled())
        for _ in range(2):
            run(model, combined, max_epochs=1)
    torch.testing.assert_close(*map(weights, models), rtol=1e-4, atol=1e-6)


class _Scaled(Dataset):
    """Changes with an attribute that a hook sets."""

    def __init__(self):
        self.data, self.scale = classification(), 1.0

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        x, y = self.data[index]
        return self.scale * x, y


class _Curriculum(Classifier):
    def on_train_epoch_start(self):
        self.trainer.train_dataloader.dataset.scale = 1.0 + self.current_epoch


@pytest.mark.parametrize("num_workers", [0, 1])
def test_hooks_may_change_the_dataset_for_an_epoch(num_workers):
    make_data = partial(unshuffled, num_workers=num_workers)
    assert_same(partial(_Curriculum, sgd), lambda: make_data(_Scaled()), "exact", max_epochs=3)


class _Epochs(_Stream):
    """Shuffles by an epoch that it must be told, as streamed text does."""

    epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        yield from random.Random(self.epoch).sample(list(super().__iter__()), self.samples)


class _TellsTheEpoch(Classifier):
    def on_train_epoch_start(self):
        self.trainer.train_dataloader.dataset.set_epoch(self.current_epoch)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_stream_that_is_told_the_epoch(num_workers):
    make_data = partial(stream, dataset=_Epochs, num_workers=num_workers)
    assert_same(partial(_TellsTheEpoch, sgd), make_data, "exact", max_epochs=3)


@pytest.mark.parametrize("data", [stream, unshuffled])
def test_lightning_may_seed_the_fetching_processes(data, monkeypatch):
    monkeypatch.setenv("PL_SEED_WORKERS", "1")
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    assert_same(partial(Classifier, sgd), partial(data, num_workers=1), max_epochs=2)


class _OpenFile(Dataset):
    """Reads each sample from a file that was opened before there were ranks."""

    def __init__(self, directory):
        self.y = classification().tensors[1]
        path = Path(tempfile.mkdtemp(dir=directory)) / "samples"
        path.write_bytes(classification().tensors[0].numpy().tobytes())
        self.file = open(path, "rb", buffering=0)  # noqa: SIM115  # open as long as the dataset lives

    def __len__(self):
        return len(self.y)

    def __getitem__(self, index):
        self.file.seek(48 * index)
        os.sched_yield()
        return torch.frombuffer(bytearray(self.file.read(48)), dtype=torch.float32), self.y[index]


def test_a_dataset_that_keeps_a_file_open(tmp_path):
    assert_same(partial(Classifier, sgd), lambda: loader(_OpenFile(tmp_path)), "exact", max_epochs=1)


class _Copying(pl.Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        mine = trainer.train_dataloader
        for other in (copy.deepcopy(mine), pickle.loads(pickle.dumps(mine))):
            assert len(other) == len(mine) == 10
            assert len(next(iter(other))[0]) == len(batch[0])
            other.close()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_training_loader_may_be_copied_in_mid_fit(num_workers):
    settings = {"num_workers": num_workers, "persistent_workers": bool(num_workers)}
    coded(Classifier(sgd), unshuffled(**settings), max_steps=3, callbacks=[_Copying()])


class Remembering(Classifier):
    """Keeps the size of rank 0's batches and the samples that it saw."""

    def __init__(self):
        super().__init__(sgd)
        self.sizes = []

    def training_step(self, batch, batch_idx):
        self.sizes.append(len(batch[0]))
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("streamed", [False, True])
def test_batch_size_may_mean_each_workers(streamed, caplog):
    data = _Stream(720) if streamed else classification()
    states = []
    for settings, batch_size in (
        ({"devices": 1}, 72),
        ({"devices": 4, "strategy": LWPDStrategy(code=uncoded(4), batch_size_means="per_worker")}, 18),
    ):
        model = Remembering()
        trainer = quiet_trainer(max_epochs=2, **settings)
        with caplog.at_level("INFO"):
            trainer.fit(model, loader(data, batch_size=batch_size))
        states.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert trainer.global_step == 20
    assert set(model.sizes) == {18}
    torch.testing.assert_close(states[1], states[0], rtol=1e-4, atol=1e-6)
    assert "batch_size=72 samples for all 4 workers together; each computes 18 of them." in caplog.text


class _OwnBatches(torch.utils.data.BatchSampler):
    """Batches that nobody else can make larger."""


def test_a_batch_sampler_cannot_mean_each_workers():
    batches = DataLoader(classification(), batch_sampler=_OwnBatches(range(720), 18, drop_last=False))
    strategy = LWPDStrategy(code=uncoded(2), batch_size_means="per_worker")
    with pytest.raises(
        ValueError, match="batch_size_means='per_worker' with a training loader whose batches _OwnBatches makes"
    ):
        quiet_trainer(max_epochs=1, devices=2, strategy=strategy).fit(Classifier(sgd), batches)


class _ReadsItself(DataLoader):
    def __iter__(self):
        return super().__iter__()


@pytest.mark.parametrize("means", ["global", "per_worker"])
def test_a_loader_that_reads_itself_is_refused(means):
    strategy = LWPDStrategy(code=uncoded(2), batch_size_means=means)
    with pytest.raises(ValueError, match="training loader _ReadsItself overrides __iter__"):
        quiet_trainer(devices=2, strategy=strategy).fit(Classifier(sgd), _ReadsItself(classification(), batch_size=72))
