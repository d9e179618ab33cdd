"""Data that a run can be judged by: the same every time, disjoint splits, a hash that tells texts apart."""

import hashlib
import sysconfig
from pathlib import Path

import pytest
import torch

from experiments.data import Digits, Lines, StdlibText
from experiments.data.stdlib_text import stdlib_sources
from experiments.data.text import VOCABULARY, CharacterWindows


def test_digits_are_the_same_whatever_the_training_seed():
    torch.manual_seed(1)
    first = Digits(batch_size=128)
    torch.manual_seed(2)
    second = Digits(batch_size=128)

    assert first.facts == second.facts
    for ours, theirs in zip(first.splits, second.splits, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours.tensors, theirs.tensors, strict=True))


def test_digits_split_depends_on_its_own_seed():
    one, other = Digits(128, split_seed=0), Digits(128, split_seed=1)

    assert not torch.equal(one.splits[1].tensors[0], other.splits[1].tensors[0])
    assert one.facts["sha256"] == other.facts["sha256"]


def test_digits_splits_are_disjoint_stratified_and_standardised():
    train, val = Digits(batch_size=128, val_share=0.2).splits

    images, labels = train.tensors
    assert images.shape[1:] == (1, 8, 8)
    assert images.dtype == torch.float32
    assert len(train) + len(val) == 1797
    shares = torch.bincount(labels, minlength=10) / len(train)
    assert torch.allclose(shares, torch.bincount(val.tensors[1], minlength=10) / len(val), atol=0.005)
    assert images.mean().abs() < 1e-5
    assert (images.std() - 1).abs() < 1e-3
    seen = {bytes(image.numpy().tobytes()) for image in images}
    assert not seen & {bytes(image.numpy().tobytes()) for image in val.tensors[0]}


def test_training_batches_are_full_and_validation_is_complete():
    data = Digits(batch_size=100)

    assert {len(labels) for _, labels in data.train_dataloader()} == {100}
    assert sum(len(labels) for _, labels in data.val_dataloader()) == len(data.splits[1])


def test_text_is_the_sources_of_this_python_in_order():
    sources = stdlib_sources()
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))

    written = [f for f in files if f.stat().st_size and not f.name.startswith("_sysconfigdata")]
    assert len(sources) == len(written)
    for source, file in zip(sources, written, strict=True):
        text = file.read_text(encoding="utf-8", errors="replace")
        assert bytes(source.tolist()) == text.encode("ascii", errors="replace")
        assert int(source.max()) < VOCABULARY


@pytest.mark.parametrize("max_chars", [1, 5000, 60_000])
def test_text_is_cut_from_its_end(max_chars):
    whole = torch.cat(stdlib_sources())

    assert torch.equal(torch.cat(stdlib_sources(max_chars)), whole[:max_chars])


def test_text_hash_is_of_the_characters_that_are_used():
    data = StdlibText(batch_size=4, context=16, max_chars=5000)

    expected = hashlib.sha256(bytes(torch.cat(stdlib_sources(5000)).tolist())).hexdigest()
    assert data.facts["sha256"] == expected
    assert StdlibText(batch_size=4, context=16, max_chars=5001).facts["sha256"] != expected


def test_text_splits_are_beginning_and_end_of_every_file():
    sources = stdlib_sources(20_000)
    train, val = StdlibText(batch_size=4, context=16, max_chars=20_000, val_share=0.1).splits

    assert len(sources) > 1
    cuts = [round(0.9 * len(source)) for source in sources]
    assert bytes(train.characters.tolist()) == b"".join(
        bytes(source[:cut].tolist()) for source, cut in zip(sources, cuts, strict=True)
    )
    assert bytes(val.characters.tolist()) == b"".join(
        bytes(source[cut:].tolist()) for source, cut in zip(sources, cuts, strict=True)
    )


@pytest.mark.parametrize("length", [0, 1, 4, 5, 8, 9, 30])
def test_windows_cover_the_text_once_and_never_leave_it(length):
    windows = CharacterWindows(torch.arange(length, dtype=torch.uint8), context=4)

    inputs = [token for tokens, _ in windows for token in tokens.tolist()]

    assert inputs == list(range(len(windows) * 4))
    assert all(following.tolist() == (tokens + 1).tolist() for tokens, following in windows)
    assert length - 1 - len(inputs) < 4
    with pytest.raises(IndexError):
        windows[len(windows)]


def test_lines_are_of_both_kinds_disjoint_and_padded():
    train, val = Lines(batch_size=8, length=16, samples=200, val_share=0.25).splits

    (tokens, labels), (held_out, _) = train.tensors, val.tensors
    assert (tokens.shape, held_out.shape) == ((150, 16), (50, 16))
    assert torch.bincount(labels).tolist() == [75, 75]
    assert (tokens > 0).all(dim=1).all()  # no line is shorter than what is kept
    assert "def " in "".join(bytes(line).decode(errors="replace") for line in (tokens[labels == 1] - 3).tolist())
    padded, _ = Lines(batch_size=8, length=200, samples=20).splits[0][0]
    assert padded[0] > 0
    assert padded[-1] == 0
    with pytest.raises(ValueError, match=r"data.samples=1000000 is not to be had of this Python: use 2 to \d+."):
        Lines(batch_size=8, samples=1000000).setup()
