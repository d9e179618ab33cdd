import pytest

from lwpd_lightning.coding import kernels


@pytest.fixture(params=["numba", "numpy"])
def host(request, monkeypatch):
    """Every rule holds with compiled kernels and without; numba is one of the development tools."""
    assert kernels.compiled() is not None
    if request.param == "numpy":
        monkeypatch.setattr(kernels, "compiled", lambda: None)
