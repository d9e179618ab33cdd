"""Sizes given one by one: what exists is let through, what does not is refused with what would do."""

import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from experiments.sizes import refuse_sizes
from lwpd_lightning import schemes

CONF = Path(__file__).parents[2] / "conf"


def composed(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides=["paths.run_dir=nowhere", *overrides])


def refused(cfg) -> str | None:
    try:
        refuse_sizes(cfg)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["lwpd", "local"])
def test_a_size_is_refused_exactly_where_there_is_no_code(scheme):
    construct = getattr(schemes, scheme)
    cfg = composed(f"scheme={scheme}")
    for n, k, t in ((n, k, t) for n in range(1, 17) for k in range(1, 17) for t in range(1, 9)):
        cfg.code.n, cfg.code.k, cfg.code.t, cfg.code.wait_for = n, k, t, n
        try:
            construct(n, k, t)
            exists = True
        except ValueError:
            exists = False
        sentence = refused(cfg)
        assert (sentence is None) == exists, (n, k, t, sentence)
        for name, value in re.findall(r"code\.(\w)=(\d+)", sentence or ""):
            near = {"n": n, "k": k, "t": t, name: int(value)}
            construct(**near)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["code.n=4"],
            "code.wait_for=6 is more than the n=4 workers of the code: add code.wait_for=3 (at most 4), "
            "or choose a size whole, code=lwpd_8_4_2 for example.",
        ),
        (
            ["code.n=16", "code.k=8", "code.t=3"],
            "t=3 does not divide k=8: the nearest sizes of scheme=lwpd are code.t=2, code.t=4.",
        ),
        (
            ["code.n=6"],
            "k=4 does not divide n=6: the nearest sizes of scheme=lwpd are code.k=2, code.k=6, code.n=4, code.n=8.",
        ),
        (
            ["scheme=local", "code.n=24", "code.k=8", "code.t=4"],
            "n=24, k=8, t=4 leaves 12 workers a data part, and t=4 blocks need 4 or 8: "
            "the nearest sizes of scheme=local are code.t=2, code.k=12, code.k=24, code.n=8, code.n=16.",
        ),
        (["code.k=0"], "k=0 does not divide n=8: the nearest sizes of scheme=lwpd are code.k=2, code.k=4."),
    ],
)
def test_the_sentence_names_what_would_do(overrides, sentence):
    assert refused(composed(*overrides)) == sentence


def test_sizes_that_a_scheme_does_not_use_do_not_matter():
    assert refused(composed("scheme=k_async", "code.n=7", "code.wait_for=5")) is None
    assert refused(composed("scheme=sync", "code.n=5")) is None
