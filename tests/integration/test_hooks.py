"""Whatever steers the training by a hook steers it on every rank: K = n equals a single process."""

import pytest
import torch

from lwpd_lightning import LWPDStrategy, lwpd_code, uncoded
from tests.integration.hooked import CASES, train

CODES = {"lwpd(4,4,2)": lambda: lwpd_code(4, 4, 2), "uncoded(2)": lambda: uncoded(2)}


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("name", CASES)
def test_hooks_act_on_every_rank(name, code):
    alone, _ = train(name, devices=1)
    coded, trainer = train(name, devices=CODES[code]().n, strategy=LWPDStrategy(code=CODES[code](), timeout_s=60))
    assert torch.linalg.vector_norm(coded - alone) <= 1e-10 * torch.linalg.vector_norm(alone)
    assert trainer.strategy.last_update.resyncs == 0
    assert not trainer.strategy.failures
