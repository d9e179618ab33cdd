"""Sizes of the `code` group that go together, asked before anything is built."""

from __future__ import annotations

from collections.abc import Iterator

from omegaconf import DictConfig

from .given import is_whole


def refuse_sizes(cfg: DictConfig) -> None:
    """Check n, k, t and wait_for against each other and against what the scheme can do.

    Raises:
        ValueError: they do not go together; its sentence names the nearest sizes that do.
    """
    size, scheme = (cfg.code.n, cfg.code.k, cfg.code.t), cfg.scheme.name
    why = _REASONS[scheme](*size) if scheme in _REASONS else None
    if why is not None:
        near = ", ".join(_nearest(scheme, size)) or "not one change away, choose a size whole: code=lwpd_8_4_2"
        raise ValueError(f"{why}: the nearest sizes of scheme={scheme} are {near}.")
    wait_for, n = cfg.scheme.strategy.get("wait_for"), cfg.code.n
    if isinstance(wait_for, int) and wait_for > n:
        raise ValueError(
            f"code.wait_for={wait_for} is more than the n={n} workers of the code: add "
            f"code.wait_for={max(n - n // 4, 1)} (at most {n}), or choose a size whole, code=lwpd_8_4_2 for example."
        )


def data_parts(cfg: DictConfig) -> tuple[int, str] | None:
    """Into how many parts the scheme cuts a batch, and the same in words; None of a scheme that is not one of ours."""
    strategy = cfg.scheme.strategy
    target, code = str(strategy.get("_target_")), strategy.get("code")
    if target.startswith(f"{__package__}.peers."):
        devices, nodes = cfg.trainer.devices, cfg.trainer.get("num_nodes", 1)
        return (devices * nodes, f"the {devices * nodes} ranks") if is_whole(devices) and is_whole(nodes) else None
    if not target.startswith("lwpd_lightning.schemes.") or not isinstance(code, DictConfig):
        return None
    parts = code.get("n")
    if (why := _REASONS.get(target.rpartition(".")[2])) is not None:
        size = [code.get(name) for name in ("n", "k", "t")]
        if not all(map(is_whole, size)) or why(*size) is not None:
            return None
        parts = code.k // code.t
    return (parts, f"the code's {parts} data parts") if is_whole(parts) else None


def _no_lwpd_code(n: int, k: int, t: int) -> str | None:
    if t < 1 or k % t:
        return f"t={t} does not divide k={k}"
    if n < 1 or k < 1 or n % k:
        return f"k={k} does not divide n={n}"
    return None


def _no_local_code(n: int, k: int, t: int) -> str | None:
    if t < 1 or k < 1 or k % t:
        return f"t={t} does not divide k={k}"
    if n < 1 or n % (k // t):
        return f"k/t={k // t} data parts do not divide n={n}"
    if n not in (k, 2 * k) and not (t == 2 and n > k):
        return f"n={n}, k={k}, t={t} leaves {n * t // k} workers a data part, and t={t} blocks need {t} or {2 * t}"
    return None


_REASONS = {"lwpd": _no_lwpd_code, "local": _no_local_code}


def _nearest(scheme: str, size: tuple[int, int, int]) -> Iterator[str]:
    """What to write for up to two values of t, k and n each, the others left as they are."""
    for name, position in (("t", 2), ("k", 1), ("n", 0)):
        tried = ((*size[:position], value, *size[position + 1 :]) for value in range(1, 2 * max(size) + 1))
        exist = [other[position] for other in tried if _REASONS[scheme](*other) is None]
        for value in sorted(sorted(exist, key=lambda value: abs(value - size[position]))[:2]):
            yield f"code.{name}={value}"
