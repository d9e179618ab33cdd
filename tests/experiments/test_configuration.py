"""Every choice under conf/ composes, and every preset becomes a run that could start."""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import CompactHydraException
from omegaconf import DictConfig, OmegaConf

from experiments.job import assemble
from experiments.peers import (
    AllReduceMonitor,
    AlonePeer,
    DDPPeer,
    DiLoCoPeer,
    LocalSGDPeer,
    OnebitAdamPeer,
    PowerSGDPeer,
)
from experiments.schemes import strategy_of
from experiments.sizes import data_parts
from experiments.train import run
from lwpd_lightning.injection import CpuShare, StragglerInjector

CONF = Path(__file__).parents[2] / "conf"
# A leading underscore marks what other files are made of. The job's own folder exists only under Hydra.
CHOICES = sorted((path.parent.name, path.stem) for path in CONF.glob("*/*.yaml") if not path.stem.startswith("_"))
if find_spec("hydra_plugins") is None or find_spec("hydra_plugins.hydra_optuna_sweeper") is None:
    CHOICES.remove(("sweep", "learning_rate"))  # which overrides hydra/sweeper
# What a choice needs beside it to make sense.
COMPANIONS = {
    ("model", "gpt"): ["data=stdlib_text"],
    ("data", "stdlib_text"): ["model=gpt"],
    ("data", "shakespeare"): ["model=gpt"],
    ("data", "lines"): ["model=transformer"],
    ("model", "transformer"): ["data=lines"],
    ("straggler", "trace"): ["straggler.model.path=delays.csv"],
}
PEERS = {
    "alone": AlonePeer,
    **dict.fromkeys(("ddp", "ddp_bf16"), DDPPeer),
    **dict.fromkeys(("diloco", "diloco_int8"), DiLoCoPeer),
    "local_sgd": LocalSGDPeer,
    "onebit_adam": OnebitAdamPeer,
    **dict.fromkeys(("powersgd", "powersgd_1", "powersgd_2", "powersgd_8"), PowerSGDPeer),
}


@pytest.fixture(autouse=True)
def hydra_state():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield
    GlobalHydra.instance().clear()


def composed(tmp_path: Path, *overrides: str) -> DictConfig:
    return compose("train", overrides=[f"paths.run_dir={tmp_path}", *overrides])


def names(group: str) -> list[str]:
    return [name for of, name in CHOICES if of == group]


@pytest.mark.slow
@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_every_choice_composes_and_resolves(tmp_path, group, name):
    cfg = composed(tmp_path, f"{group}={name}", *COMPANIONS.get((group, name), []))

    resolved = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)

    assert resolved["trainer"]["devices"] == resolved["code"]["n"]


@pytest.mark.slow
@pytest.mark.parametrize("experiment", names("experiment"))
def test_every_preset_assembles(tmp_path, experiment):
    if experiment == "transformers":
        pytest.importorskip("transformers", reason="transformers is not installed (extra `examples`)")
    cfg = composed(tmp_path, f"experiment={experiment}", "logger=csv")

    job = assemble(cfg)

    assert job.trainer.strategy.code.n == cfg.code.n
    assert job.timer is not None
    assert job.monitor is not None
    assert cfg.task_name == experiment


@pytest.mark.slow
@pytest.mark.parametrize("scheme", sorted({*names("scheme")} - {*PEERS}))
def test_every_coded_scheme_has_a_code_of_every_size(tmp_path, scheme):
    cfg = composed(tmp_path, f"scheme={scheme}")
    for size in names("code"):
        cfg.code = OmegaConf.load(CONF / f"code/{size}.yaml")
        check_code(cfg, scheme)


@pytest.mark.parametrize(
    ("words", "stale", "dtype"),
    [
        ([], "drop", "ternary"),
        (["scheme.strategy.compressor=plain"], "apply", None),
        (["scheme=sync"], "apply", None),
        (["scheme=sync", "scheme.strategy.compressor=rotated"], "drop", "ternary"),
    ],
)
def test_what_follows_from_the_compressor_is_recorded(tmp_path, words, stale, dtype):
    strategy = composed(tmp_path, *words).scheme.strategy

    assert (strategy.stale, strategy.wire_dtype, strategy.update_dtype) == (stale, dtype, dtype)
    settings = strategy_of(composed(tmp_path, *words).scheme).settings
    assert (settings.stale, settings.wire_dtype, settings.update_dtype) == (stale, dtype, dtype)


def test_a_compressor_that_there_is_not_is_refused_in_the_strategys_words(tmp_path):
    with pytest.raises(CompactHydraException, match="compressor='white' is unknown: use one of None, 'plain'"):
        run(composed(tmp_path, "logger=csv", "scheme.strategy.compressor=white"))


def check_code(cfg, scheme):
    code = strategy_of(cfg.scheme).code

    assert code.n == cfg.code.n
    assert data_parts(cfg) == (code.data_parts, f"the code's {code.data_parts} data parts")
    assert code.is_tight == (scheme != "gradient_coding")
    whole_parts = {
        "sync": 1,
        "k_async": 1,
        "k_async_int8": 1,
        "k_sync": 1,
        "gradient_coding": 1,
        "sketch": 3,
        "whitened": 1,
    }
    expected = (code.n, whole_parts[scheme]) if scheme in whole_parts else (cfg.code.k // cfg.code.t, cfg.code.t)
    assert (code.data_parts, code.blocks) == expected
    assert code.recovery_threshold == (cfg.code.wait_for if scheme == "gradient_coding" else None)
    assert cfg.scheme.strategy.wait_for == (code.n if scheme == "sync" else cfg.code.wait_for)


def test_sizes_can_be_given_one_by_one(tmp_path):
    cfg = composed(tmp_path, "code.n=16", "code.k=8", "code.t=4", "code.wait_for=12")

    assert cfg == composed(tmp_path, "code=lwpd_16_8_4")


@pytest.mark.parametrize("scheme", PEERS)
def test_a_peer_has_as_many_ranks_as_the_code_has_workers(tmp_path, scheme):
    job = assemble(composed(tmp_path, f"scheme={scheme}", "code=lwpd_16_8_4", "logger=csv"))

    assert type(job.trainer.strategy) is PEERS[scheme]
    assert job.trainer.world_size == 16
    assert data_parts(composed(tmp_path, f"scheme={scheme}", "code=lwpd_16_8_4")) == (16, "the 16 ranks")
    assert isinstance(job.monitor, AllReduceMonitor)
    assert (job.code, job.wait_for) == (None, None)


@pytest.mark.parametrize("straggler", sorted({*names("straggler")} - {"none", "cpu_share"}))
@pytest.mark.parametrize("scheme", ["lwpd", "ddp"])
def test_a_straggler_becomes_a_callback(tmp_path, straggler, scheme):
    (tmp_path / "delays.csv").write_text("0.5,0\n" * 8)
    overrides = ["logger=csv", f"scheme={scheme}", f"straggler={straggler}", "seed=5"]
    if straggler == "trace":
        overrides.append(f"straggler.model.path={tmp_path}/delays.csv")

    job = assemble(composed(tmp_path, *overrides))

    (injector,) = [callback for callback in job.trainer.callbacks if isinstance(callback, StragglerInjector)]
    injector.model.check(8)
    assert injector.model.delay_s(1, 0, compute_s=1.0) >= 0
    assert getattr(injector.model, "seed", 5) == 5


def test_a_share_of_a_core_becomes_a_callback(tmp_path):
    job = assemble(composed(tmp_path, "logger=csv", "straggler=cpu_share", "+straggler.shares={2: 0.5}"))

    (share,) = [callback for callback in job.trainer.callbacks if isinstance(callback, CpuShare)]
    assert share.shares == {1: 0.1, 2: 0.5}


def test_without_a_straggler_there_is_no_injector(tmp_path):
    job = assemble(composed(tmp_path, "logger=csv"))

    assert not any(isinstance(callback, StragglerInjector) for callback in job.trainer.callbacks)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["code.t=3"], "t=3 does not divide k=4"),
        (["scheme=local", "code.t=3"], "t=3 does not divide k=4"),
        (["scheme=gradient_coding", "scheme.strategy.code.repetition=fractional"], "repetition='fractional' with"),
        (["scheme=gradient_coding", "scheme.strategy.stale=apply"], "stale='apply' with decoder='exact'"),
        (["scheme=gradient_coding", "code.wait_for=9"], "wait_for=9 is more than the n=8 workers"),
        (["scheme=sketch", "scheme.strategy.decoder=least_squares"], "decoder='least_squares' with Code"),
        (["data.batch_size=127"], "data.batch_size=127 is not divisible by the code's 2 data parts"),
        (["scheme=ddp", "data.batch_size=100"], "data.batch_size=100 is not divisible by the 8 ranks: use a multiple"),
        (["scheme=ddp", "+trainer.accumulate_grad_batches=2"], "accumulate_grad_batches=2 is not supported by a peer"),
        (["scheme=ddp", "straggler=one_slow", "+straggler.model.slowdown={8: 2}"], "slowdown names worker 8, but"),
        (["scheme=ddp", "scheme.strategy.gradient_dtype=int8"], "gradient_dtype='int8' is unknown: use one of"),
        (["scheme=powersgd", "scheme.strategy.rank=0"], "rank=0 approximates nothing: use 1 or more"),
        (["scheme=local_sgd", "scheme.strategy.every=0"], "every=0 is no number of updates: use 1 or more"),
        (["scheme=diloco", "scheme.strategy.exchange_dtype=int4"], "exchange_dtype='int4' is unknown: use one of"),
        (["scheme=onebit_adam", "scheme.strategy.warmup_updates=0"], "warmup_updates=0 leaves no variance: use 1 or"),
        (["scheme=onebit_adam", "+model.optimizer.amsgrad=true"], "amsgrad=True is not supported by 1-bit Adam: use"),
        (
            ["scheme=ddp", "straggler=cpu_share", "+straggler.shares={0: 0.5}"],
            "shares names worker 0, but only workers",
        ),
        (["straggler=cpu_share", "+straggler.shares={8: 0.5}"], "shares names worker 8, but only workers 1 to 7 of"),
        (["straggler=cpu_share", "straggler.shares={1: 2}"], r"shares\[1\]=2 is no share of a core: use a number from"),
        (["straggler=pareto", "straggler.model.shape=0"], "shape=0 is not positive: use a number above 0"),
        (["straggler=trace", "straggler.model.path=nowhere.csv"], "path=nowhere.csv is no file: use one with"),
        (["data.batch_size=2000"], "data.batch_size=2000 is no batch of 1437 samples"),
        (["data.val_share=1"], "data.val_share=1.* leaves one split empty"),
        (["trainer.max_epochs=-1"], "give model.schedule no end"),
        (["trainer.devices=9"], "trainer.devices=9 makes 9 ranks, and the code has n=8 workers"),
        (["ckpt_path=nowhere.ckpt"], "ckpt_path=nowhere.ckpt is no file"),
        (["callbacks.checkpoint.monitor=foo"], "^callbacks.checkpoint.monitor=foo is not logged by the model: use one"),
        (["optimized_metric=val_bpc"], "^optimized_metric=val_bpc is not logged by the model: use one of train_loss"),
        (["straggler=one_slow", "+straggler.model.slowdown={9: 2}"], "^slowdown names worker 9, but the run has"),
        (
            ["+callbacks.faults._target_=lwpd_lightning.injection.FaultInjector", "+callbacks.faults.kills={9: 1}"],
            "^kills names worker 9, but only workers 1 to 7 of the run can be killed",
        ),
        (["model=gpt"], "model=gpt with data=stdlib_text"),
        (["data=stdlib_text", "model=gpt", "model.heads=3"], "model.heads=3 does not divide model.width=128"),
        (["data=stdlib_text", "model=gpt", "data.max_chars=900"], "data.max_chars=900 makes"),
        (["data=lines"], "model=transformer with data=lines"),
        (["model=cnn", "model.channels=[8,8,8,8]"], "use 1 to 3 convolutions"),
    ],
)
def test_what_cannot_run_is_refused_in_a_sentence(tmp_path, overrides, sentence):
    with pytest.raises(CompactHydraException, match=sentence) as caught:
        run(composed(tmp_path, "logger=csv", *overrides))

    assert "\n" not in str(caught.value)
    assert not (tmp_path / "summary.json").exists()


def test_a_transformer_is_made_of_its_configuration_or_refused(tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed (extra `examples`)")
    chosen = ["logger=csv", "experiment=transformers"]

    network = assemble(composed(tmp_path, *chosen, "model.kind=electra", "data.length=12")).model.net.model
    assert (network.config.model_type, network.config.max_position_embeddings, network.num_labels) == ("electra", 12, 2)
    with pytest.raises(Exception, match=r"model.kind=best with model.config=.*Unrecognized model identifier: best"):
        assemble(composed(tmp_path, *chosen, "model.kind=best"))


def test_without_transformers_one_sentence_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)

    with pytest.raises(CompactHydraException) as caught:
        run(composed(tmp_path, "logger=csv", "experiment=transformers"))

    assert str(caught.value) == (
        "transformers is not installed: pip install 'lwpd-lightning[examples]', or use another model"
    )


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "model.optimizer.lr=-0.1",
            "^model.optimizer.lr=-0.1: Invalid learning rate: -0.1; torch.optim.Adam has lr=0.001 where it is left",
        ),
        (
            "+model.optimizer.weight_decay=much",
            "^model.optimizer.weight_decay=much: .*; torch.optim.Adam has weight_decay=0 where it is left out$",
        ),
        (
            "+model.optimizer.betas=[0.9, 2]",
            r"^model.optimizer.betas=\[0.9, 2\]: Invalid beta .* has betas=\(0.9, 0.999",
        ),
        ("+model.optimizer.speed=9", "model.optimizer: .*unexpected keyword argument 'speed'; .* takes lr, betas, "),
    ],
)
def test_what_an_optimizer_does_not_take_is_said_before_anything_else(tmp_path, override, sentence):
    with pytest.raises(ValueError, match=sentence):
        assemble(composed(tmp_path, "logger=csv", override))
