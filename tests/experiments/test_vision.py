"""Torchvision's data sets: refused in a sentence where they cannot be had, read as they are where they can."""

import gzip
import importlib.util
import pickle
import shutil
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import CompactHydraException

from experiments.data import Digits, Vision
from experiments.data.vision import SHAPES
from experiments.models import cnn_classifier
from experiments.train import run

ROOT = Path(__file__).parents[2]
INSTALLED = importlib.util.find_spec("torchvision") is not None
needs_torchvision = pytest.mark.skipif(not INSTALLED, reason="torchvision is not installed (extra `vision`)")
TRAIN, VAL = 40, 20


@pytest.fixture(autouse=True)
def configured(tmp_path):
    def with_overrides(*overrides: str):
        return compose("train", overrides=[f"paths.run_dir={tmp_path}", f"paths.data={tmp_path}", *overrides])

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield with_overrides
    GlobalHydra.instance().clear()


@pytest.mark.skipif(INSTALLED, reason="torchvision is installed")
@pytest.mark.parametrize("data", ["mnist", "fashion_mnist", "cifar10"])
def test_without_the_extra_one_sentence_names_it_and_the_alternative(configured, data):
    with pytest.raises(CompactHydraException) as caught:
        run(configured(f"data={data}", "logger=csv"))

    assert str(caught.value) == (
        "torchvision is not installed: pip install 'lwpd-lightning[vision]', or use data=digits"
    )


@needs_torchvision
@pytest.mark.parametrize("data", ["mnist", "fashion_mnist", "cifar10"])
def test_without_the_files_one_sentence_names_the_folder_and_the_alternative(configured, tmp_path, data):
    with pytest.raises(CompactHydraException, match=f"is not in data.root={tmp_path} .*use data=digits") as caught:
        run(configured(f"data={data}", "data.download=false", "logger=csv"))

    assert "\n" not in str(caught.value)


def test_an_unknown_name_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"data.name=EMNIST is unknown: use one of MNIST, FashionMNIST, CIFAR10."):
        Vision("EMNIST", str(tmp_path), batch_size=4)


@pytest.mark.parametrize("data", ["digits", "mnist", "fashion_mnist", "cifar10"])
def test_the_configured_shape_is_the_datas_and_the_models(configured, data):
    images = configured(f"data={data}", "model=cnn").images

    expected = (1, 8, 8) if data == "digits" else SHAPES[configured(f"data={data}").data.name]
    assert tuple(images.shape) == expected
    for model in ("cnn", "mlp"):
        cfg = configured(f"data={data}", f"model={model}").model
        assert (list(cfg.shape), cfg.classes) == (list(expected), images.classes)
    if data == "digits":
        assert Digits(128).splits[0][0][0].shape == expected


def random_images(count: int, shape: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(10, size=count)
    return generator.integers(256, size=(count, *shape), dtype=np.uint8), labels


def write_idx(folder: Path, name: str, array: np.ndarray) -> None:
    """The format of http://yann.lecun.com/exdb/mnist: 0, 0, type (8: bytes), dimensions, sizes, values."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    (folder / name).write_bytes(header + array.astype(np.uint8).tobytes())


def write_mnist(root: Path, name: str) -> list[tuple[np.ndarray, np.ndarray]]:
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    written = []
    for split, count in (("train", TRAIN), ("t10k", VAL)):
        images, labels = random_images(count, (28, 28), seed=count)
        write_idx(folder, f"{split}-images-idx3-ubyte", images)
        write_idx(folder, f"{split}-labels-idx1-ubyte", labels)
        written.append((images[:, None], labels))
    return written


def write_cifar(root: Path, monkeypatch) -> list[tuple[np.ndarray, np.ndarray]]:
    """The Python version of https://www.cs.toronto.edu/~kriz/cifar.html."""
    from torchvision import datasets
    from torchvision.datasets.utils import calculate_md5

    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    written = []
    for attribute, names in (("train_list", [f"data_batch_{i}" for i in range(1, 6)]), ("test_list", ["test_batch"])):
        pieces = [
            random_images(TRAIN // 5 if attribute == "train_list" else VAL, (3, 32, 32), i) for i in range(len(names))
        ]
        for name, (images, labels) in zip(names, pieces, strict=True):
            batch = {"data": images.reshape(len(images), -1), "labels": labels.tolist()}
            (folder / name).write_bytes(pickle.dumps(batch))
        # The digests are those of the published files.
        monkeypatch.setattr(datasets.CIFAR10, attribute, [[name, calculate_md5(folder / name)] for name in names])
        written.append(tuple(np.concatenate(columns) for columns in zip(*pieces, strict=True)))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [str(i) for i in range(10)]}))
    meta = {**datasets.CIFAR10.meta, "md5": calculate_md5(folder / "batches.meta")}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    return written


def packed(root: Path, name: str, monkeypatch) -> None:
    """What was written, as it is published: each of MNIST's files compressed, CIFAR's folder in an archive."""
    from torchvision import datasets
    from torchvision.datasets.utils import calculate_md5

    kind = getattr(datasets, name)
    if name == "CIFAR10":
        with tarfile.open(root / kind.filename, "w:gz") as archive:
            archive.add(root / kind.base_folder, kind.base_folder)
        monkeypatch.setattr(kind, "tgz_md5", calculate_md5(root / kind.filename))
        shutil.rmtree(root / kind.base_folder)
        return
    resources = []
    for path in sorted((root / name / "raw").iterdir()):
        compressed = path.with_name(f"{path.name}.gz")
        compressed.write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
        resources.append((compressed.name, calculate_md5(compressed)))
    monkeypatch.setattr(kind, "resources", resources)
    monkeypatch.setattr(kind, "mirrors", ["http://127.0.0.1:9/"])  # where nobody listens


@needs_torchvision
@pytest.mark.parametrize("name", SHAPES)
def test_published_files_that_are_there_are_unpacked_and_no_network_is_asked(tmp_path, monkeypatch, name):
    written = write_cifar(tmp_path, monkeypatch) if name == "CIFAR10" else write_mnist(tmp_path, name)
    unpacked = Vision(name, str(tmp_path), batch_size=8, download=False).facts
    packed(tmp_path, name, monkeypatch)
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("the network was asked"))

    data = Vision(name, str(tmp_path), batch_size=8)

    assert data.facts == unpacked
    assert [int(label) for _, label in data.splits[0]] == written[0][1].tolist()


@needs_torchvision
@pytest.mark.parametrize("name", SHAPES)
def test_images_are_read_split_and_standardised(tmp_path, monkeypatch, name):
    written = write_cifar(tmp_path, monkeypatch) if name == "CIFAR10" else write_mnist(tmp_path, name)
    (train, train_labels), (val, _) = written
    data = Vision(name, str(tmp_path), batch_size=8, download=False)

    ours, held_out = data.splits

    assert (len(ours), len(held_out)) == (TRAIN, VAL)
    images = torch.stack([image for image, _ in ours])
    assert images.shape[1:] == SHAPES[name]
    assert images.dtype == torch.float32
    axes = (0, 2, 3)
    mean, deviation = train.mean(axis=axes, keepdims=True), train.std(axis=axes, keepdims=True)
    np.testing.assert_allclose(images.numpy(), (train - mean) / deviation, atol=1e-4)
    assert [int(label) for _, label in ours] == train_labels.tolist()
    np.testing.assert_allclose(held_out[3][0].numpy(), ((val - mean) / deviation)[3], atol=1e-4)
    assert {len(labels) for _, labels in data.train_dataloader()} == {8}
    assert data.facts["train_samples"] == TRAIN
    assert data.facts["sha256"] == Vision(name, str(tmp_path), 4, download=False).facts["sha256"]
    batch, _ = next(iter(data.val_dataloader()))
    assert cnn_classifier(SHAPES[name], [4, 8], 16, 10, torch.optim.SGD)(batch).shape == (VAL, 10)


@needs_torchvision
def test_a_batch_larger_than_the_split_is_refused(tmp_path):
    write_mnist(tmp_path, "MNIST")

    with pytest.raises(ValueError, match=f"data.batch_size=41 is no batch of {TRAIN} samples: use 1 to {TRAIN}."):
        Vision("MNIST", str(tmp_path), batch_size=41, download=False).setup()
