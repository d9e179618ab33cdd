import warnings

import pytest
import torch


@pytest.fixture(autouse=True)
def _quiet_and_seeded():
    """Fits in tests leave the process as they found it, and do not fill the report with Lightning's advice."""
    threads = torch.get_num_threads()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        yield
    assert torch.get_num_threads() == threads
