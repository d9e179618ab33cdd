"""Which exceptions become a sentence and which keep their traceback."""

from typing import Literal

import pydantic
import pytest
from hydra.utils import instantiate
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from experiments.refusals import refusal


def caught(node: dict[str, object]) -> Exception:
    with pytest.raises(Exception) as info:  # noqa: PT011 - whatever Hydra wraps it in
        instantiate(node)
    return info.value


def test_the_sentence_of_a_target_comes_through_hydra():
    error = caught({"inner": {"_target_": "lwpd_lightning.lwpd_code", "n": 8, "k": 4, "t": 3}})

    assert refusal(error).startswith("t=3 does not divide k=4")


def test_a_missing_module_of_the_extra_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "needs_wandb.py").write_text("raise ModuleNotFoundError(\"No module named 'wandb'\", name='wandb.sdk')")
    monkeypatch.syspath_prepend(tmp_path)

    error = caught({"_target_": "needs_wandb.Logger"})

    assert refusal(error) == "wandb is not installed: pip install 'lwpd-lightning[experiments]'"


def test_lightnings_own_words_for_a_missing_logger_name_the_extra():
    error = ModuleNotFoundError("Requirement 'wandb>=0.12.10' not met. HINT: Try running `pip install -U 'wandb'`")

    assert refusal(error) == "wandb is not installed: pip install 'lwpd-lightning[experiments]'"


def test_what_pydantic_refuses_is_a_sentence():
    class Settings(pydantic.BaseModel):
        mode: Literal["offline", "online"]

    with pytest.raises(ValueError, match="further information") as caught:
        Settings(mode="sometimes")

    assert refusal(caught.value) == "mode=sometimes: Input should be 'offline' or 'online'"


def test_a_torchvision_of_another_torch_is_a_sentence():
    sentence = refusal(RuntimeError("operator torchvision::nms does not exist"))

    assert "was not made for torch" in sentence
    assert "lwpd-lightning[vision]" in sentence
    assert refusal(RuntimeError("operator aten::nms does not exist")) is None


def test_lightnings_refusals_are_sentences():
    assert refusal(MisconfigurationException("No supported gpu backend found!")) == "No supported gpu backend found!"


@pytest.mark.parametrize(
    "defect", [TypeError("a bug"), KeyError("a bug"), ModuleNotFoundError("No module named 'numpi'", name="numpi")]
)
def test_defects_keep_their_traceback(defect):
    assert refusal(defect) is None
