"""Settings that cannot work are refused in one sentence before any process starts; the others are completed."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from lwpd_lightning.coding import gradient_code, local_code, lwpd_code, uncoded
from lwpd_lightning.recommended import default_code
from lwpd_lightning.settings import ExchangeSettings

COARSE = ("sign", "ternary")
CODE = lwpd_code(8, 4, 2)
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def refusal(act, *args, **kwargs):
    """The sentence with which ``act`` refuses."""
    with pytest.raises(ValueError, match=r"\.$") as caught:
        act(*args, **kwargs)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("decoder", ["projective", "least_squares", "exact"]),
        ("stale", [None, "apply", "drop"]),
        ("wire_dtype", [None, "float64", "float32", "bfloat16", "int8", "sign", "ternary"]),
        ("update_dtype", [None, "float64", "float32", "bfloat16", "int8", "sign", "ternary"]),
        ("start_method", ["auto", "fork", "rerun"]),
    ],
)
def test_unknown_words_are_refused_with_the_known_ones(name, choices):
    sentence = refusal(ExchangeSettings, **{name: "other"})
    assert sentence == f"{name}='other' is unknown: use one of {', '.join(map(repr, choices))}."
    for choice in choices:
        feedback = {"error_feedback": True} if name == "wire_dtype" and choice in COARSE else {}
        assert getattr(ExchangeSettings(**{name: choice}, **feedback), name) == choice


@pytest.mark.parametrize("name", ["heartbeat_s", "timeout_s"])
@pytest.mark.parametrize("seconds", [0, -1.5, math.nan, math.inf, 1e-4, 1e10, True, None, [5]])
def test_what_is_no_duration_is_refused(name, seconds):
    assert refusal(ExchangeSettings, **{name: seconds}).startswith(f"{name}={seconds} is no duration: use a positive")


@pytest.mark.parametrize("name", ["heartbeat_s", "timeout_s"])
def test_words_are_no_durations_and_any_librarys_number_is(name):
    assert refusal(ExchangeSettings, **{name: "5"}) == (
        f"{name}='5' is no duration: use a positive number of seconds, "
        + ("0.01 to 1000000." if name == "heartbeat_s" else "0.001 to 1000000000.")
    )
    for seconds in (7, np.float32(7), np.int64(7)):
        assert getattr(ExchangeSettings(**{name: seconds}), name) == 7.0


WHOLE = ["wait_for", "min_workers", "max_staleness"]


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("integer", [np.int64(6), np.uint8(6), np.array(6), torch.tensor(6)], ids=repr)
def test_an_integer_of_any_library_counts(name, integer):
    settings = ExchangeSettings(code=CODE, **{name: integer})
    assert type(getattr(settings, name)) is int
    assert getattr(settings, name) == 6
    assert settings.resolved(8).waits == ((6, 6) if name == "wait_for" else (8, 8))
    assert ExchangeSettings(wait_for="adaptive", wait_for_bounds=np.array([2, 6])).wait_for_bounds == (2, 6)


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize(
    "value", [6.0, np.float64(6), True, False, np.True_, torch.tensor(True), "6", [6], torch.tensor([1.5, 2.5])],
    ids=repr,
)  # fmt: skip
def test_what_only_looks_like_an_integer_is_refused(name, value):
    said = refusal(ExchangeSettings, code=CODE, **{name: value})
    assert said.startswith(f"{name}={value!r} is no number of ")
    assert ": use an integer" in said


@pytest.mark.parametrize("bounds", [(2.0, 6.0), (True, 6), (2, None), (2,), (2, 4, 6), 6, "26", 2.5], ids=repr)
def test_bounds_that_are_no_two_integers_are_refused(bounds):
    sentence = refusal(ExchangeSettings, code=CODE, wait_for="adaptive", wait_for_bounds=bounds)
    assert sentence == f"wait_for_bounds={bounds!r} are no two numbers of codewords: use two integers (least, most)."
    assert ExchangeSettings(wait_for="adaptive", wait_for_bounds=[2, 6]).wait_for_bounds == (2, 6)


@pytest.mark.parametrize("name", ["error_feedback", "dedicated_coordinator"])
@pytest.mark.parametrize("value", ["false", 1, 0, None, "True"])
def test_only_true_and_false_are_true_or_false(name, value):
    sentence = refusal(ExchangeSettings, wire_dtype="int8", **{name: value})
    assert sentence == f"{name}={value!r} is neither true nor false: use True or False."
    assert getattr(ExchangeSettings(wire_dtype="int8", **{name: np.True_}), name) is True


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), True, "x", "1x", "many", [3]])
def test_what_bounds_no_norm_is_refused(value):
    sentence = refusal(ExchangeSettings, max_codeword_norm=value)
    assert sentence == (
        f"max_codeword_norm={value!r} is no bound on norms: use a positive number, a multiple above 1 of the median as "
        "'10x', or None."
    )


@pytest.mark.parametrize(("value", "read"), [(np.float32(2), 2.0), (3, 3.0), ("10x", "10x"), (None, None)])
def test_bounds_on_norms_are_read(value, read):
    assert ExchangeSettings(max_codeword_norm=value).max_codeword_norm == read


@pytest.mark.parametrize("value", ["lwpd", lwpd_code, CODE.generator, {"n": 8}, 8])
def test_what_is_no_code_is_refused(value):
    sentence = refusal(ExchangeSettings, code=value)
    assert sentence.startswith("code=")
    assert len(sentence) < 200
    assert sentence.endswith(" is no code: use what lwpd_code, local_code, gradient_code or uncoded gives, or None.")


@pytest.mark.parametrize("value", [torch.bfloat16, ["int8"], np.array(["int8", "int8"]), 8, True])
def test_what_is_no_word_is_refused_as_an_unknown_one(value):
    for name in ("decoder", "stale", "wire_dtype", "update_dtype", "start_method"):
        assert refusal(ExchangeSettings, **{name: value}).startswith(f"{name}={value!r} is unknown: use one of ")


@pytest.mark.parametrize("given", [{"max_staleness": 3, "stale": "drop"}, {"max_staleness": -1}])
def test_a_staleness_bound_that_cannot_be_is_refused(given):
    assert f"max_staleness={given['max_staleness']} with stale=" in refusal(ExchangeSettings, **given)
    assert ExchangeSettings(max_staleness=0).max_staleness == 0


def test_error_feedback_needs_something_lost():
    for wire_dtype in (None, "float32", "float64"):
        assert "'bfloat16', 'int8', 'sign' or 'ternary'" in refusal(
            ExchangeSettings, error_feedback=True, wire_dtype=wire_dtype
        )
    for wire_dtype in ("bfloat16", "int8"):
        assert ExchangeSettings(error_feedback=True, wire_dtype=wire_dtype).error_feedback
    sketch = local_code(4, data_parts=4, blocks=2)  # leaves a direction out at any dtype
    assert ExchangeSettings(code=sketch, error_feedback=True).error_feedback
    for update_dtype in ("bfloat16", "int8", "ternary"):  # what packing the sum loses goes back where it has one row
        given = {"error_feedback": True, "update_dtype": update_dtype}
        for wire_dtype in (None, "float32"):
            assert ExchangeSettings(code=uncoded(4), wire_dtype=wire_dtype, **given).rows == 1
        assert "such an update_dtype and a code of one block." in refusal(ExchangeSettings, code=CODE, **given)
        assert "such an update_dtype and a code of one block." in refusal(ExchangeSettings, **given)
    assert "nothing is lost" in refusal(ExchangeSettings, code=uncoded(4), error_feedback=True, update_dtype="float32")
    assert "'bfloat16', 'int8', 'sign' or 'ternary', or with a sketch" in refusal(
        ExchangeSettings, code=CODE, error_feedback=True
    )


def test_error_feedback_is_a_compressor_beside_which_there_is_no_other():
    assert ExchangeSettings(wire_dtype="ternary", compressor="error_feedback").remembers
    assert not ExchangeSettings(compressor="plain").remembers
    for name in ("plain", "error_feedback"):
        assert refusal(ExchangeSettings, wire_dtype="int8", error_feedback=True, compressor=name) == (
            f"compressor={name!r} with error_feedback=True, which is a compressor too: use one of them."
        )


def test_a_decoder_that_does_not_fit_the_code_is_refused():
    gradient = gradient_code(8, stragglers=2)
    assert "use decoder='exact'." in refusal(ExchangeSettings, code=gradient)
    assert "use a gradient_code" in refusal(ExchangeSettings, code=CODE, decoder="exact", stale="drop")
    late = ExchangeSettings(decoder="exact", stale="drop")  # no code yet: known when the world size is
    assert "use a gradient_code" in refusal(late.resolved, 8)
    sketch = local_code(4, data_parts=4, blocks=2)
    assert "use decoder='projective'." in refusal(ExchangeSettings, code=sketch, decoder="least_squares")


def test_exact_decoding_is_refused_where_it_could_not_be_exact():
    exact = {"code": gradient_code(8, stragglers=2), "decoder": "exact"}
    assert "use stale='drop'." in refusal(ExchangeSettings, **exact)
    for name in ("wait_for", "min_workers"):
        sentence = refusal(ExchangeSettings, **exact, stale="drop", **{name: 5})
        assert sentence.startswith(f"{name}=5 with decoder='exact': the code gives the exact gradient from any 6 of 8")
        assert "use 6..8" in sentence
        assert getattr(ExchangeSettings(**exact, stale="drop", **{name: 6}), name) == 6
    everyone = gradient_code(4, stragglers=3)
    assert ExchangeSettings(code=everyone, wait_for=1, decoder="exact", stale="drop").wait_for == 1


@pytest.mark.parametrize("decoder", ["exact", "least_squares"])
@pytest.mark.parametrize("update_dtype", ["ternary", "int8", "bfloat16"])
@pytest.mark.parametrize("wire_dtype", [None, "int8", "ternary"])
def test_what_a_tiny_solved_weight_would_blow_up_is_not_fed_back(decoder, update_dtype, wire_dtype):
    code = gradient_code(8, stragglers=2)
    solved = (code.decoding_weights(arrived, decoder="exact") for arrived in itertools.combinations(range(8), 6))
    assert min(float(weights.abs().min()) for weights in solved) < 1 / 8 / 50  # an even one is 1/8
    given = {"decoder": decoder, "stale": "drop", "wire_dtype": wire_dtype, "error_feedback": True}
    sentence = refusal(ExchangeSettings, code=code, update_dtype=update_dtype, **given)
    assert sentence.startswith(f"decoder={decoder!r} with update_dtype={update_dtype!r} and error_feedback=True: a wei")
    works = {"update_dtype": None} if wire_dtype else {"update_dtype": "int8", "error_feedback": False}
    assert sentence.endswith("; use " + " with ".join(f"{name}={value!r}" for name, value in works.items()) + ".")
    assert ExchangeSettings(code=code, **{**given, **works}).decoder == decoder
    if decoder == "exact":
        return
    late = ExchangeSettings(update_dtype="int8", **{**given, "wire_dtype": "int8"})
    assert late.resolved(8).rows == 2  # nothing is given back
    even = {**given, "code": uncoded(8), "update_dtype": update_dtype}
    assert refusal(ExchangeSettings, **even).endswith("; use decoder='projective'.")
    assert ExchangeSettings(**{**even, "decoder": "projective"}).rows == 1


def test_the_fewest_workers_are_what_was_asked_or_what_the_decoder_needs():
    exact = {"code": gradient_code(8, stragglers=2), "decoder": "exact", "stale": "drop"}
    assert ExchangeSettings(**exact).fewest_workers == 6
    assert ExchangeSettings(**exact, min_workers=7).fewest_workers == 7
    assert ExchangeSettings(code=CODE).fewest_workers == 2
    assert ExchangeSettings(code=CODE, min_workers=5).fewest_workers == 5
    assert ExchangeSettings(code=uncoded(1)).fewest_workers == 1


@pytest.mark.parametrize("name", ["wait_for", "min_workers"])
@pytest.mark.parametrize("count", [0, 9, -1])
def test_counts_outside_the_code_are_refused(name, count):
    sentence = f"{name}={count} is outside 1..8: the code has n=8 workers, use 1 to 8."
    assert refusal(ExchangeSettings, code=CODE, **{name: count}) == sentence
    late = ExchangeSettings(**{name: count})  # no code yet: known when the world size is
    assert refusal(late.resolved, 8) == sentence


def test_a_world_of_another_size_is_refused_with_both_numbers():
    sentence = refusal(ExchangeSettings(code=CODE).resolved, 6)
    assert "the world size is 6" in sentence
    assert "n=8 workers" in sentence
    assert "use devices=8 on one node, or a code with n=6." in sentence


def test_a_dedicated_coordinator_is_counted():
    settings = ExchangeSettings(code=CODE, dedicated_coordinator=True)
    assert settings.resolved(9).wait_for == 8
    sentence = refusal(settings.resolved, 8)
    assert "a dedicated coordinator" in sentence
    assert "use devices=9 on one node, or a code with n=7." in sentence
    assert replace(settings, code=None).resolved(9).code.n == 8


@pytest.mark.parametrize("code", [None, CODE])
def test_a_dedicated_coordinator_alone_is_refused(code):
    sentence = refusal(ExchangeSettings(code=code, dedicated_coordinator=True).resolved, 1)
    assert sentence.startswith("devices=1 with dedicated_coordinator=True leaves no worker: use devices=")
    devices = int(sentence.split("devices=")[-1].split()[0].rstrip("."))
    assert ExchangeSettings(code=code, dedicated_coordinator=True).resolved(devices).code.n == devices - 1


def test_resolving_completes_a_copy():
    settings = ExchangeSettings()
    resolved = settings.resolved(8)
    assert (settings.code, settings.wait_for, settings.compressor) == (None, None, None)
    assert torch.equal(resolved.code.generator, CODE.generator)
    assert resolved.wait_for == 8
    assert ExchangeSettings(code=CODE, wait_for=3).resolved(8).wait_for == 3
    assert resolved.resolved(8) == resolved


@pytest.mark.parametrize("n", range(1, 41))
def test_there_is_a_default_code_for_every_world(n):
    code = default_code(n)
    assert code.n == n
    assert code.n % code.k == 0
    assert code.is_tight
    assert code.recovery_profile(max_sets=1)[n] == 1.0
    assert (code.k == n // 2) == (n % 4 == 0 and n >= 8)
    assert n == 1 or code.t >= 2
    assert ExchangeSettings().resolved(n).wait_for == n


RECOMMENDED = {"stale": "drop", "wire_dtype": "ternary", "update_dtype": "ternary", "compressor": "whitened"}
EXACT = {"stale": "apply", "wire_dtype": None, "update_dtype": None, "compressor": None}


def exchanged(settings):
    return {name: getattr(settings, name) for name in EXACT}


@pytest.mark.parametrize("n", [2, 3, 4, 5, 8])
def test_who_names_nothing_of_the_exchange_gets_what_is_recommended(n):
    for given in ({}, {"wait_for": 2}, {"batch_size_means": "per_worker"}, {"decoder": "least_squares"}):
        assert exchanged(ExchangeSettings(**given).resolved(n)) == RECOMMENDED
    assert exchanged(ExchangeSettings(dedicated_coordinator=True).resolved(n + 1)) == RECOMMENDED


def test_one_worker_sends_nothing_and_loses_nothing():
    assert exchanged(ExchangeSettings().resolved(1)) == EXACT
    assert exchanged(ExchangeSettings(dedicated_coordinator=True).resolved(2)) == EXACT


@pytest.mark.parametrize(
    "named",
    [
        {"compressor": "plain"},
        {"stale": "drop"},
        {"stale": "apply"},
        {"max_staleness": 3},
        {"wire_dtype": "float32"},
        {"wire_dtype": "int8"},
        {"update_dtype": "bfloat16"},
        {"error_feedback": True, "wire_dtype": "int8"},
    ],
    ids=str,
)
def test_who_names_something_of_it_gets_that_and_an_exact_rest(named):
    settings = ExchangeSettings(**named).resolved(8)
    assert exchanged(settings) == EXACT | {name: value for name, value in named.items() if name in EXACT}


def test_a_code_that_is_named_is_exact():
    assert exchanged(ExchangeSettings(code=CODE).resolved(8)) == EXACT


@pytest.mark.parametrize("name", ["whitened", "rotated"])
def test_a_compressor_brings_what_it_is_for_and_what_is_named_goes_before_it(name):
    assert exchanged(ExchangeSettings(code=CODE, compressor=name)) == RECOMMENDED | {"compressor": name}
    for named in ({"wire_dtype": "sign"}, {"wire_dtype": "float32", "update_dtype": "float32"}):
        assert exchanged(ExchangeSettings(compressor=name, **named)) == RECOMMENDED | {"compressor": name} | named
    assert "max_staleness=3 with stale='drop'" in refusal(ExchangeSettings, compressor=name, max_staleness=3)


@pytest.mark.parametrize("code", [local_code(8, 4, 2), uncoded(8)], ids=repr)
def test_any_code_of_the_right_size_serves(code):
    assert ExchangeSettings(code=code).resolved(8).code is code


PLACES = [(CPU, 1, False), (CPU, 2, False), (CUDA, 1, False), (CPU, 1, True)]  # device, nodes, outside launcher


@pytest.mark.parametrize("place", PLACES)
def test_workers_are_forked_on_one_machine_without_a_gpu(place):
    forkable = place == PLACES[0]
    assert ExchangeSettings().started_on(*place).start_method == ("fork" if forkable else "rerun")
    assert ExchangeSettings(start_method="rerun").started_on(*place).start_method == "rerun"
    forced = ExchangeSettings(start_method="fork")
    if forkable:
        assert forced.started_on(*place) == forced
        return
    device, nodes, external = place
    sentence = refusal(forced.started_on, *place)
    assert f"start_method='fork' with device {device.type!r} and num_nodes={nodes}" in sentence
    assert ("under an outside launcher" in sentence) == external
    assert sentence.endswith("use 'rerun'.")


def test_a_gpu_that_torch_sees_keeps_a_cpus_ranks_from_being_forked(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert ExchangeSettings().started_on(CPU, 1, False).start_method == "rerun"
    sentence = refusal(ExchangeSettings(start_method="fork").started_on, CPU, 1, False)
    assert "on a machine whose GPU torch sees (CUDA_VISIBLE_DEVICES='' hides it)" in sentence
    assert sentence.endswith("use 'rerun'.")


def test_codewords_travel_as_the_gradient_is_unless_told_otherwise():
    assert ExchangeSettings().wire(torch.float64, CPU, seed=1).name == "float64"
    assert ExchangeSettings().wire(torch.float32, CPU, seed=1).name == "float32"
    assert ExchangeSettings(wire_dtype="bfloat16").wire(torch.float32, CPU, seed=1).name == "bfloat16"


def test_int8_is_unbiased_exactly_where_nothing_feeds_its_error_back():
    codeword = torch.full((4096,), 0.3)
    codeword[0] = 127.0

    def sent(seed, error_feedback):
        wire = ExchangeSettings(wire_dtype="int8", error_feedback=error_feedback).wire(torch.float32, CPU, seed)
        return wire.unpack(wire.pack(codeword), 4096)

    assert torch.equal(sent(1, True)[1:1024], torch.zeros(1023))
    drawn = sent(1, False)
    assert set(drawn[1:1024].tolist()) == {0.0, 1.0}
    assert drawn[1:1024].mean() == pytest.approx(0.3, abs=0.05)
    assert torch.equal(drawn, sent(1, False))
    assert not torch.equal(drawn, sent(2, False))


def test_ternary_needs_somebody_to_take_back_what_it_loses():
    sketch = local_code(4, data_parts=4, blocks=2)
    ternary = {"wire_dtype": "ternary", "update_dtype": "ternary"}
    for name in COARSE:
        assert refusal(ExchangeSettings, wire_dtype=name) == (
            f"wire_dtype='{name}' with error_feedback=False would lose most of every gradient: use "
            "error_feedback=True, compressor='whitened' with stale='drop', or wire_dtype='int8'."
        )
    for given in (
        {"code": sketch, "stale": "drop"},
        {"code": sketch, "error_feedback": True},  # stale="apply": codewords along several rows
        {"code": CODE, "error_feedback": True, "wire_dtype": "int8", "stale": "drop"},
    ):
        assert "stale='drop'" in refusal(ExchangeSettings, update_dtype="ternary", **given)
    for code in (sketch, uncoded(4)):
        assert ExchangeSettings(code=code, stale="drop", error_feedback=True, **ternary).rows == 1


@pytest.mark.parametrize("name", ["whitened", "rotated"])
def test_a_compressor_that_rotates_makes_coarse_formats_do_for_codewords_of_one_version(name):
    for code in (uncoded(4), CODE, gradient_code(4, 1), local_code(8, 2, 2), local_code(4, 4, 1)):
        decoder = "exact" if code.recovery_threshold else "projective"
        for wire_dtype in COARSE:
            given = {"wire_dtype": wire_dtype, "update_dtype": "ternary", "compressor": name, "stale": "drop"}
            assert not ExchangeSettings(code=code, decoder=decoder, **given).resolved(code.n).remembers
    assert refusal(ExchangeSettings, compressor=name, stale="apply") == (
        f"compressor={name!r} with stale='apply': its codewords of different versions do not add up, use stale='drop'."
    )
    sketch = {"code": local_code(4, data_parts=4, blocks=3), "stale": "drop"}
    sentence = refusal(ExchangeSettings, compressor=name, **sketch)
    assert sentence.startswith(
        f"compressor={name!r} with Code(family='sketch', n=4, k=12, t=3, data_parts=4, blocks=3), "
    )
    assert sentence.endswith(
        "use uncoded, lwpd_code, local_code with data_parts < n or gradient_code, or error_feedback=True in its place."
    )
    assert ExchangeSettings(error_feedback=True, **sketch).remembers


def test_coarse_formats_have_unbiased_levels_where_nobody_feeds_back():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    fed_back = ExchangeSettings(wire_dtype="ternary", error_feedback=True)
    rotated = ExchangeSettings(wire_dtype="ternary", update_dtype="ternary", compressor="rotated", stale="drop")
    plain = fed_back.wire(torch.float32, CPU).pack(values)
    for wire in (rotated.wire(torch.float32, CPU), rotated.sum_wire(torch.float32)):
        unbiased = wire.pack(values)
        assert torch.equal(unbiased[4:], plain[4:])
        assert unbiased[:4].view(torch.float32) > plain[:4].view(torch.float32)


def test_an_adaptive_k_has_bounds():
    assert ExchangeSettings(code=CODE, wait_for="adaptive").resolved(8).waits == (2, 8)
    assert ExchangeSettings(code=CODE, wait_for="adaptive", dedicated_coordinator=True).resolved(9).waits == (1, 8)
    assert ExchangeSettings(code=CODE, wait_for="adaptive", wait_for_bounds=(3, 6)).waits == (3, 6)
    assert ExchangeSettings(code=CODE).resolved(8).waits == (8, 8)
    exact = gradient_code(8, stragglers=2)
    settings = ExchangeSettings(code=exact, wait_for="adaptive", decoder="exact", stale="drop")
    assert settings.resolved(8).waits == (6, 8)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"wait_for": "most"}, "wait_for='most' is no number of codewords: use an integer, or 'adaptive'."),
        ({"wait_for": 6, "wait_for_bounds": (2, 6)}, "with wait_for=6: only wait_for='adaptive' chooses"),
        ({"wait_for": "adaptive", "wait_for_bounds": (2, 9)}, "wait_for_bounds=(2, 9) is outside 1..8"),
        ({"wait_for": "adaptive", "wait_for_bounds": (6, 2)}, "wait_for_bounds=(6, 2) are the wrong way round"),
        ({"wait_for": "adaptive", "wait_for_bounds": (1, 8)}, "wait_for_bounds=(1, 8) would let rank 0 step"),
    ],
)
def test_an_adaptive_k_that_cannot_be_is_refused(given, sentence):
    assert sentence in refusal(ExchangeSettings, code=CODE, **given)
