"""K = n equals single-process full-batch training, for every family, through real processes."""

from functools import partial

import pytest
import torch

from lwpd_lightning import LWPDStrategy, gradient_code, local_code, lwpd_code, uncoded
from lwpd_lightning.coding.wire import dtype_name
from lwpd_lightning.data import CodedLoader
from tests.integration.models import Classifier, adam, classification, loader, quiet_trainer, sgd

UPDATES = 20
step_lr = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)


class _WholeBatches(torch.utils.data.Sampler):
    """The batches of a coded run, in order, for a single process."""

    def __init__(self, coded: CodedLoader) -> None:
        self._coded = coded

    def __iter__(self):
        for epoch in range(UPDATES):
            yield from self._coded._order(epoch)


def parameters_after(trainer, model, data):
    trainer.fit(model, data)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def single_process(optimizer, dtype, data, coded, **settings):
    """Plain Lightning on one device, fed the same batches as one long epoch; the scheduler steps where epochs end."""
    batches = torch.utils.data.DataLoader(data, batch_sampler=_WholeBatches(coded))
    updates_per_epoch = len(coded)
    schedule = {"interval": "step", "frequency": updates_per_epoch}
    model = Classifier(optimizer, lambda o: {"scheduler": step_lr(o), **schedule})
    return parameters_after(quiet_trainer(max_steps=UPDATES, **settings), model, batches)


CODES = {
    "lwpd(8,4,2)": lambda: lwpd_code(8, 4, 2),
    "lwpd(16,8,4)": lambda: lwpd_code(16, 8, 4),
    "lwpd(18,9,3)": lambda: lwpd_code(18, 9, 3),
    "local(8,A=2,B=2)": lambda: local_code(8, data_parts=2, blocks=2),
    "uncoded(6)": lambda: uncoded(6),
    "gradient(8,s=2)": lambda: gradient_code(8, stragglers=2),
    "gradient(8,s=3,fractional)": lambda: gradient_code(8, stragglers=3, repetition="fractional"),
    "sketch(6,B=1)": lambda: local_code(6, data_parts=6, blocks=1),
}
DAILY = ["lwpd(8,4,2)", "uncoded(6)"]
OPTIMIZERS = {"sgd": sgd, "adam": adam}
TOLERANCES = {torch.float32: ("32-true", 1e-5), torch.float64: ("64-true", 1e-11)}


@pytest.mark.parametrize(
    ("name", "optimizer", "dtype"),
    [
        *((name, optimizer, dtype) for name in DAILY for optimizer in OPTIMIZERS for dtype in TOLERANCES),
        *(
            pytest.param(name, optimizer, dtype, marks=pytest.mark.slow)
            for name in CODES
            if name not in DAILY
            for optimizer, dtype in (("sgd", torch.float32), ("adam", torch.float64))  # neither knows of the code
        ),
    ],
)
def test_waiting_for_all_equals_a_single_process(name, optimizer, dtype):
    code = CODES[name]()
    exact = {"decoder": "exact", "stale": "drop"} if code.recovery_threshold else {}
    assert_equals_a_single_process(code, OPTIMIZERS[optimizer], dtype, **exact)


@pytest.mark.parametrize("code", [uncoded(4), lwpd_code(4, 2, 2)], ids=repr)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_whitened_codewords_that_are_not_coarse_do_too(code, dtype):
    """Whitening, rotation and their inverses are linear: AdamW gets the gradient itself."""
    adamw = partial(torch.optim.AdamW, lr=0.01)
    fine = {"wire_dtype": dtype_name(dtype), "update_dtype": dtype_name(dtype)}
    assert_equals_a_single_process(code, adamw, dtype, compressor="whitened", **fine)


def assert_equals_a_single_process(code, optimizer, dtype, **exchange):
    precision, tolerance = TOLERANCES[dtype]
    data = classification(dtype=dtype)
    settings = {"gradient_clip_val": 0.5, "precision": precision}
    strategy = LWPDStrategy(code=code, **exchange)
    model = Classifier(optimizer, lambda o: {"scheduler": step_lr(o)})
    trainer = quiet_trainer(devices=code.n, strategy=strategy, max_steps=UPDATES, **settings)
    batches = loader(data, shuffle=True)
    coded = parameters_after(trainer, model, batches)
    reference_loader = CodedLoader(
        batches, data_parts=code.data_parts, parts=(0,), seed=trainer.fit_loop._combined_loader.flattened[0].seed
    )
    alone = single_process(optimizer, dtype, data, reference_loader, **settings)
    assert trainer.global_step == UPDATES
    assert coded.dtype == dtype
    assert torch.linalg.vector_norm(coded - alone) <= tolerance * torch.linalg.vector_norm(alone)
    start = torch.cat([p.detach().flatten() for p in Classifier(optimizer).parameters()]).to(dtype)
    assert torch.linalg.vector_norm(alone - start) > 0.1 * torch.linalg.vector_norm(start)  # it did train
