"""What validation has changed of a module is told, whatever the change is one of."""

import pytest
import torch

from lwpd_lightning.steering import same

ONE = torch.ones(2)


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (torch.ones(2), True),
        (torch.tensor([1.0, 2.0]), False),
        (torch.ones(2, dtype=torch.float64), False),
        (torch.ones(2, device="meta"), False),  # as a hook that moves a tensor to the GPU
        (torch.ones(3), False),
        ([1.0, 1.0], False),
        (1.0, False),
    ],
)
def test_tensors_are_the_same_where_device_dtype_and_values_are(other, expected):
    assert same(ONE, other) == same(other, ONE) == expected
    assert same({"a": [ONE]}, {"a": [other]}) == expected
