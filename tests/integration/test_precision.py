"""Training in 16 bits: K = n is the mean of the data parts' gradients, to the last bit that the precision has."""

import multiprocessing

import lightning.pytorch as pl
import pytest
import torch

from lwpd_lightning import LWPDStrategy, local_code, lwpd_code, uncoded
from lwpd_lightning.worker_callback import WorkerCallback
from tests.integration import precise
from tests.integration.models import Classifier, classification, loader, quiet_trainer, sgd
from tests.integration.precise import NEIGHBOUR

CODES = {
    "uncoded(4)": lambda: uncoded(4),
    "lwpd(4,4,2)": lambda: lwpd_code(4, 4, 2),
    "sketch(4,B=1)": lambda: local_code(4, data_parts=4, blocks=1),
}
codes = pytest.mark.parametrize("name", CODES)


def strategy(code, **settings):
    return LWPDStrategy(code=code, timeout_s=60, **settings)


@pytest.mark.slow
@codes
def test_16_mixed_leaves_the_same_steps_out_as_one_process_that_adds_the_parts_up(name):
    code = CODES[name]()
    alone, scale = precise.train_parts_in_float16(code.data_parts)
    coded, trainer = precise.train("16-mixed", devices=4, strategy=strategy(code))
    assert torch.linalg.vector_norm(coded - alone) <= 1e-5 * torch.linalg.vector_norm(alone)
    assert precise.scale_of(trainer) == scale < precise.SCALE
    assert trainer.strategy.last_update.resyncs == 0
    assert torch.linalg.vector_norm(alone - precise.weights(Classifier(sgd))) > 0.1  # it did train
    assert 0 < trainer.strategy.last_update.loss < 2  # and what is told of the loss is not scaled


@pytest.mark.slow
def test_16_mixed_leaves_steps_out_where_codewords_are_coarse():
    _, scale = precise.train_parts_in_float16(2)
    _, trainer = precise.train("16-mixed", devices=4, strategy="lwpd")
    assert precise.scale_of(trainer) == scale < precise.SCALE
    assert trainer.strategy.last_update.resyncs == 0
    assert 0 < trainer.strategy.last_update.loss < 2


@pytest.mark.slow
@codes
def test_bf16_true_rounds_the_exact_mean_once(name):
    code = CODES[name]()
    alone = precise.train_parts_in_bfloat16(code.data_parts)
    coded, trainer = precise.train("bf16-true", devices=4, strategy=strategy(code))
    assert torch.linalg.vector_norm(coded - alone) <= NEIGHBOUR * torch.linalg.vector_norm(alone)
    assert trainer.strategy.last_update.resyncs == 0  # all ranks rounded alike
    whole, _ = precise.train("bf16-true", devices=1)
    assert torch.linalg.vector_norm(coded - whole) <= NEIGHBOUR * torch.linalg.vector_norm(whole)


@codes
def test_a_decoded_bfloat16_gradient_is_the_float32_mean_of_the_parts(name):
    code = CODES[name]()

    class Decoded(Classifier):
        gradient = None

        def on_after_backward(self):
            assert all(p.dtype == p.grad.dtype == torch.bfloat16 for p in self.parameters())
            Decoded.gradient = torch.cat([p.grad.double().flatten() for p in self.parameters()])

    trainer = quiet_trainer(devices=4, strategy=strategy(code), max_steps=1, precision="bf16-true")
    trainer.fit(Decoded(sgd), loader())
    model, parts = Classifier(sgd).bfloat16(), code.data_parts
    x, y = (tensor[:72].view(parts, 72 // parts, *tensor.shape[1:]) for tensor in classification().tensors)
    exact = 0.0
    for part in range(parts):
        loss = torch.nn.functional.cross_entropy(model.net(x[part].bfloat16()), y[part])
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        exact = exact + torch.cat([g.double().flatten() for g in gradients]) / parts
    # Rounded to the nearer neighbour; in a codeword float32's last bit is that of the block that it is mixed with.
    assert ((Decoded.gradient - exact).abs() <= NEIGHBOUR / 2 * exact.abs() + 1e-6 * exact.abs().max()).all()


def test_a_codeword_of_an_older_scale_counts_as_any_other():
    """Worker 3 sends its first codeword one version late, when the scale is twice what it was."""
    late = {raised_after: decoded_with_one_late(raised_after) for raised_after in (1, 1000)}
    for one, other in zip(late[1], late[1000], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def decoded_with_one_late(raised_after):
    """Three gradients, of the same batch at the same weights, the second with a codeword of the version before."""
    context = multiprocessing.get_context("fork")
    closed = context.Event()
    gradients, staleness = [], []

    class Late(WorkerCallback):
        def on_codeword_end(self, trainer, worker, version, compute_s):
            if (worker, version) == (3, 0):
                assert closed.wait(60)

        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            if trainer.is_global_zero:
                trainer.strategy._fit._coordinator._rule.wait_for = 4  # the late one too
                gradients.append(torch.cat([p.grad.flatten() for p in pl_module.parameters()]))
                staleness.append(max(arrival.staleness for arrival in trainer.strategy.last_update.arrivals))
                closed.set()

    trainer = quiet_trainer(
        devices=4, strategy=strategy(uncoded(4), wait_for=3), max_steps=3, max_epochs=-1, callbacks=[Late()],
        plugins=[precise.float16("cpu", scale=16.0, raised_after=raised_after)],
    )  # fmt: skip
    still = Classifier(lambda parameters: torch.optim.SGD(parameters, lr=0.0))
    trainer.fit(still, loader(classification(72)))
    assert staleness == [0, 1, 0]
    assert precise.scale_of(trainer) == (16.0 * 2**3 if raised_after == 1 else 16.0)
    torch.testing.assert_close(gradients[2], mean_gradient(still), rtol=0.3, atol=1e-3)  # all four, unscaled
    return gradients


def mean_gradient(model):
    x, y = classification(72).tensors
    loss = torch.nn.functional.cross_entropy(model.net(x), y)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def test_who_takes_over_rank_0s_state_takes_over_its_scale(tmp_path):
    class Told(Classifier):
        def teardown(self, stage):
            (tmp_path / str(self.trainer.global_rank)).write_text(str(precise.scale_of(self.trainer)))

    class Elsewhere(pl.Callback):
        """Rank 0 alone goes to other weights, and to another scale."""

        on_workers = False

        def on_train_batch_end(self, trainer, pl_module, *args):
            if trainer.global_step == 3:
                pl_module.net[0].weight.data.mul_(2)
                scaler = trainer.precision_plugin.scaler
                scaler.load_state_dict({**scaler.state_dict(), "scale": 48.0})

    trainer = quiet_trainer(
        devices=3, strategy=strategy(uncoded(3)), max_steps=6, callbacks=[Elsewhere()],
        plugins=[precise.float16("cpu", scale=16.0, raised_after=1000)],
    )  # fmt: skip
    trainer.fit(Told(sgd), loader())
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"0": "48.0", "1": "48.0", "2": "48.0"}


def test_a_checkpoint_keeps_the_scale(tmp_path):
    keep = pl.callbacks.ModelCheckpoint(tmp_path, filename="stopped")
    stopped, trainer = Classifier(sgd), None
    for model, checkpoint, steps in (
        (stopped, None, 7),
        (Classifier(sgd), tmp_path / "stopped.ckpt", precise.UPDATES),
    ):
        trainer = quiet_trainer(
            devices=4, strategy=strategy(uncoded(4)), max_steps=steps, max_epochs=-1, callbacks=[keep],
            enable_checkpointing=True, plugins=[precise.float16("cpu")],
        )  # fmt: skip
        trainer.fit(model, loader(), ckpt_path=checkpoint, weights_only=False)
    straight, scale = precise.train_parts_in_float16(4)
    assert precise.scale_of(trainer) == scale
    assert torch.linalg.vector_norm(precise.weights(model) - straight) <= 1e-5 * torch.linalg.vector_norm(straight)
