"""Gains of normalization layers, and constants, moved into the weights behind them, which keeps the function."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from lossscope.probes.gauge.symmetry import Slot, Weights

__all__ = ["BatchNormFold", "ConstantFold", "Fold", "GainFold", "is_folded"]


@dataclass(frozen=True)
class BatchNormFold:
    """A batch norm in eval mode right behind a linear layer: one affine map with it.

    Attributes:
        name: Name of the batch norm.
        weight: Rows of the layer before it.
        bias: Name of the bias of that layer, or None.
    """

    name: str
    weight: Slot
    bias: str | None

    @property
    def words(self) -> str:
        """The symmetry in words."""
        return f"gains of {self.name}, folded into {self.weight.name}"

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of all parameters that change."""
        own = (self.weight.name, f"{self.name}.weight", f"{self.name}.bias")
        return own if self.bias is None else (*own, self.bias)

    @property
    def gains(self) -> tuple[Slot, ...]:
        """The slots of gain and shift, which scale the features as long as they are not folded."""
        size = math.prod(self.weight.shape[axis] for axis in self.weight.order[: self.weight.lead])
        return tuple(Slot(f"{self.name}.{key}", (size,), (0,)) for key in ("weight", "bias"))

    def apply(self, model: nn.Module) -> None:
        """Fold in place: the batch norm is left with gain 1, which is frozen, and with the only bias of the two."""
        norm, parameters = model.get_submodule(self.name), dict(model.named_parameters())
        gain, shift, mean, variance = (
            _double(getattr(norm, key)) for key in ("weight", "bias", "running_mean", "running_var")
        )
        factors = gain / (variance + norm.eps).sqrt()  # type: ignore[operator]
        before = 0.0 if self.bias is None else _double(parameters[self.bias])
        shift = shift + (before - mean) * factors
        weight = {self.weight.name: _double(parameters[self.weight.name])}
        self.weight.multiply(weight, factors)
        _set(parameters[self.weight.name], weight[self.weight.name])
        _set(norm.running_mean, torch.zeros_like(mean))  # type: ignore[arg-type]
        _set(norm.running_var, torch.full_like(variance, 1 - norm.eps))  # type: ignore[arg-type, operator]
        _freeze(parameters[f"{self.name}.weight"], 1.0)
        if self.bias is None:
            _set(parameters[f"{self.name}.bias"], shift)
        else:
            _set(parameters[self.bias], shift)
            _freeze(parameters[f"{self.name}.bias"], 0.0)


def is_folded(norm: nn.Module, *, own_bias: bool) -> bool:
    """Return True if a batch norm only adds its bias in eval mode, or does nothing.

    Args:
        norm: A batch norm with statistics, gain and shift.
        own_bias: True if its shift is the only bias; otherwise it has to be 0.
    """
    if norm.weight.requires_grad or norm.bias.requires_grad is not own_bias:
        return False
    keys = ("weight", "bias", "running_mean", "running_var")
    gain, shift, mean, variance = (_double(getattr(norm, key)) for key in keys)
    factors = gain / (variance + norm.eps).sqrt()  # type: ignore[operator]
    return not mean.any() and (own_bias or not shift.any()) and torch.allclose(factors, torch.ones_like(gain))


@dataclass(frozen=True)
class GainFold:
    """Gain and shift of a normalization that linear layers read.

    Attributes:
        name: Name of the normalization, as text.
        gain: Name of its gain, one for each feature.
        shift: Name of its shift, or None.
        reads: Columns of the linear layers.
        biases: Their biases, or None where there is none; with a shift each layer has one.
    """

    name: str
    gain: str
    shift: str | None
    reads: tuple[Slot, ...]
    biases: tuple[Slot | None, ...]

    @property
    def words(self) -> str:
        """The symmetry in words."""
        return f"gains of {self.name}, folded into {', '.join(_names(self.reads))}"

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of all parameters that change."""
        biases = _names(bias for bias in self.biases if bias is not None) if self.shift else ()
        return tuple(name for name in (self.gain, self.shift, *_names(self.reads), *biases) if name is not None)

    @property
    def gains(self) -> tuple[Slot, ...]:
        """The slots of gain and shift."""
        size = (self.reads[0].shape[1],)
        return tuple(Slot(name, size, (0,)) for name in (self.gain, self.shift) if name is not None)

    def apply(self, model: nn.Module) -> None:
        """Fold in place: the gain is left at 1 and the shift at 0, both frozen."""
        parameters = dict(model.named_parameters())
        gain = _double(parameters[self.gain])
        for read, bias in zip(self.reads, self.biases, strict=True):
            weight = {read.name: _double(parameters[read.name])}
            if self.shift is not None and bias is not None:
                _add(parameters, bias, _read(weight, read, _double(parameters[self.shift])))
            read.multiply(weight, gain)
            _set(parameters[read.name], weight[read.name])
        _freeze(parameters[self.gain], 1.0)
        if self.shift is not None:
            _freeze(parameters[self.shift], 0.0)


@dataclass(frozen=True)
class ConstantFold:
    """A constant part of features that only linear layers with biases read.

    Attributes:
        constant: A bias, or an embedding, of which the mean over its rows is the constant.
        reads: Columns of the linear layers.
        biases: Their biases, or constants that are added behind them.
        times: How often the constant is a part of what each of them reads.
    """

    constant: Slot
    reads: tuple[Slot, ...]
    biases: tuple[Slot, ...]
    times: tuple[int, ...]

    @property
    def words(self) -> str:
        """The symmetry in words."""
        into = ", ".join(_names(self.biases)) or "nothing, as none reads it"
        return f"constant part of {self.constant.name}, moved into {into}"

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of all parameters that change."""
        return (self.constant.name, *_names(self.biases))

    def apply(self, model: nn.Module) -> None:
        """Fold in place: the bias, or the mean of the embedding, is left at 0 and stays trainable."""
        parameters = dict(model.named_parameters())
        own = {self.constant.name: _double(parameters[self.constant.name])}
        rows = self.constant.rows(own)
        mean = rows.mean(1)
        for read, bias, times in zip(self.reads, self.biases, self.times, strict=True):
            _add(parameters, bias, times * _read({read.name: _double(parameters[read.name])}, read, mean))
        self.constant.assign(own, rows - mean[:, None])
        _set(parameters[self.constant.name], own[self.constant.name])


Fold: TypeAlias = BatchNormFold | GainFold | ConstantFold


def _names(slots: Iterable[Slot]) -> tuple[str, ...]:
    """Return the names of parameters, each once."""
    return tuple(dict.fromkeys(slot.name for slot in slots))


def _read(weight: Weights, slot: Slot, constant: Tensor) -> Tensor:
    """Return what a linear layer makes of a constant vector of features."""
    view = slot.of(weight)
    taps = view.reshape(*view.shape[: slot.lead + 1], -1).sum(-1)  # features of a group last but one, outputs last
    return (taps * constant.reshape(*view.shape[: slot.lead], 1)).sum(-2).reshape(-1)


def _add(parameters: Mapping[str, nn.Parameter], bias: Slot, values: Tensor) -> None:
    """Add a vector to a bias, or to each column of another constant."""
    own = {bias.name: _double(parameters[bias.name])}
    bias.assign(own, bias.rows(own) + values[:, None])
    _set(parameters[bias.name], own[bias.name])


def _double(tensor: Tensor) -> Tensor:
    """Return a contiguous float64 copy on the CPU, as not every device has float64."""
    return tensor.detach().to("cpu").to(torch.float64, copy=True).contiguous()


def _set(tensor: Tensor, values: Tensor) -> None:
    """Write values into a parameter or a buffer."""
    with torch.no_grad():
        tensor.copy_(values)


def _freeze(parameter: Tensor, value: float) -> None:
    """Make a parameter a constant."""
    _set(parameter, torch.full_like(parameter, value))
    parameter.requires_grad_(False)
