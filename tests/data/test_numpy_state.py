"""NumPy's global generator is kept and put back exactly, whatever was drawn between: as NumPy itself does it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lwpd_lightning.data.numpy_state import numpy_state, seed_numpy, set_numpy_state

DRAWS = {
    "gaussian": np.random.normal,
    "uniform": np.random.random,
    "many": lambda: np.random.random(700),  # the keys are made anew
    "binomial": lambda: np.random.binomial(40, 0.3),
    "poisson": lambda: np.random.poisson(30.0),
    "shuffle": lambda: np.random.permutation(5),
    "seed": lambda: np.random.seed(5),
    "own seed": lambda: seed_numpy(7),
    "nothing": lambda: None,
}
steps = st.lists(st.sampled_from([*DRAWS, "keep", "ours", "theirs", "swap"]), max_size=14)


@pytest.fixture(autouse=True)
def _as_it_was():
    state = np.random.get_state()
    yield
    np.random.set_state(state)


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@given(steps)
def test_any_order_of_drawing_keeping_and_putting_back_leaves_what_numpys_own_functions_would(steps):
    np.random.seed(1)
    ours, theirs = numpy_state(), np.random.get_state()
    for step in steps:
        if step == "keep":
            ours, theirs = numpy_state(), np.random.get_state()
        elif step == "ours":
            set_numpy_state(ours)
            assert same(np.random.get_state()[:4], theirs[:4])
            assert not theirs[3] or np.random.get_state()[4] == theirs[4]
        elif step == "theirs":
            np.random.set_state(theirs)
        elif step == "swap":  # somebody else's isolation, which goes back in time
            before = np.random.get_state()
            np.random.normal()
            numpy_state()
            np.random.set_state(before)
        else:
            DRAWS[step]()
        if (kept := numpy_state()).whole is None:
            assert not np.random.get_state()[3], "a Gaussian waits"
            assert np.frombuffer(kept.memory, np.uint32, 624).tolist() == np.random.get_state()[1].tolist()


def test_another_kind_of_generator_is_kept_too():
    mersenne = np.random.get_bit_generator()
    try:
        np.random.set_bit_generator(np.random.PCG64(3))
        state = numpy_state()
        drawn = np.random.random()
        set_numpy_state(state)
        assert np.random.random() == drawn
    finally:
        np.random.set_bit_generator(mersenne)
