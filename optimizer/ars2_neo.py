"""ARS2-Neo: Adam's whitening, Muon's orthogonalization and SAM's ascent in one optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, Literal

import torch
from torch import Tensor

from lossscope.optimizer.ascent.two_pass import Pass
from lossscope.optimizer.base import Params, TwoPassOptimizer
from lossscope.optimizer.errors import OptimizerError
from lossscope.optimizer.hyperparameters import DEFAULTS, SHARED, period_of
from lossscope.optimizer.update.adam import ParameterStep, Update, apply_step, decay, whitened
from lossscope.optimizer.update.matrix_view import track_of
from lossscope.optimizer.update.rule import Direction, Group, Rule, zeros

__all__ = ["ARS2Neo", "Pass"]


def _step(group: Group, moments: Sequence[ParameterStep]) -> list[Update]:
    """Whiten, decay, and step matrices along their orthogonal factors."""
    A = whitened(moments, group["betas"], group["eps"])
    decay(group, moments)
    return [apply_step(group, m.parameter, a) for m, a in zip(moments, A, strict=True)]


_ARS2: Final = Rule(
    step=_step,
    words="ARS2-Neo",
    source="the public ARS2-Neo",
    lr=DEFAULTS["lr"],
    weight_decay=DEFAULTS["weight_decay"],
    settings={name: value for name, value in DEFAULTS.items() if name not in (*SHARED, "lr", "weight_decay")},
    fresh_state=zeros("exp_avg", "exp_avg_sq"),
    direction=Direction.ORTHOGONAL,
    adam_moments=True,
    orthogonalizes=True,
    adamw_vectors=True,
)
_ALONG_ADAM: Final = replace(_ARS2, direction=Direction.ADAM)  # orthogonalize=False: O only sets the step length


class ARS2Neo(TwoPassOptimizer):
    r"""ARS2-Neo. With the default settings the numbers are those of the published ARS2-Neo.

    Per matrix, with moments `m`, `v` and their bias-corrected forms:
    `A = m_hat / (sqrt(v_hat) + eps)`, `E = |A|_F`, `O` = Newton-Schulz of `A`,
    `W <- (1 - lr wd) W - lr E O`. Vectors take Adam's step `lr A`. On a sync step the gradient is the one
    at `w + e`. As `|O|_F` is about `0.87 sqrt(min(m, n))`, a step is longer than Adam's by that factor at the same lr.

    Steps are taken by `passes()` and `step()`, or by `step(closure)`: see `TwoPassOptimizer`.

    Args:
        params: Parameters, `(name, parameter)` pairs or groups. The shape decides the track (`ndim >= 2`:
            matrix) unless a group sets `track="matrix"` or `"vector"`; see `routing`.
        lr: Learning rate.
        betas: Decay rates of the two moments.
        eps: Added to the square root of the second moment.
        weight_decay: Decoupled weight decay, applied before the step as `1 - lr * weight_decay`.
        mode: `base`: one pass. `sync`: two passes every step. `lazy`: two every `k` steps, with the stored shear
            injected in between. `aga`: two when the gradient turns against the stored shear, or after `k` steps.
            `timer`: two at random, at the rate at which the trigger of aga fires if phi is noise (a control). To match
            a recorded `aga` run, choose `aga_lambda` so that Phi(-aga_lambda) equals its trigger probability per step
            (before the cap, as measured by `trigger_test`), and set `alpha` to its mean injection strength; or replay
            its second gradients window by window with `replay_counts`.
        rho: Radius of the ascent; 0 disables the ascent, at the cost of `base`.
        k: Period of lazy (default 5) or longest interval of aga and timer (default 10); an error in other modes.
        alpha: Norm of the injected shear, as a fraction of the gradient's norm.
        aga_beta: Decay rate of the running mean of phi^2.
        aga_lambda: Threshold of the trigger in standard deviations of phi.
        aga_gamma: Exponent of `(1 + max(0, phi))`, which multiplies alpha.
        replay_counts: Numbers of second gradients that `timer` takes in successive windows, at random steps of them, in
            place of `aga_lambda` and `k`: those of a recorded `aga` run, so that both spend the same at the same time.
        replay_window: Steps in a window of `replay_counts`.
        energy: Size of a matrix step: `reference` E O, `unit` E O / |O|_F, `rms` 0.2 sqrt(max(m, n)) O.
        newton_schulz: Preset of polynomial coefficients, see `newton_schulz.PRESETS`.
        ns_steps: Number of polynomials; `deepseek_v4` needs 10, `keller_finished` 8.
        ns_dtype: Dtype of the products for float32 parameters: `"auto"` is float32 on the CPU and bfloat16
            on CUDA. A `torch.dtype` applies to all parameters.
        ns_norm: Norm by which a matrix is divided before Newton-Schulz: `frobenius`, or the smaller `schatten4`.
        perturbation: `ars2` (per tensor, times |w|), `paper` (global), `sam`, `asam`; or a control in a random
            direction: `random` with the radii of `ars2`, `random_ball` with that of `paper` and `sam`.
        shear: Injected vector: `looksam`, `placebo` (random, orthogonal, same norm), `signflip`, `off`.
        orthogonalize: False steps along `A` instead of `O`, with steps of exactly the same norm.
        flatten: Views raw 3-D parameters `(h, d, n)` as one matrix `(h d, n)` instead of `h` matrices. A
            group with `convolution=True` is viewed as `(out, -1)`, as are parameters with more dimensions.
        trigger: `reference`, or `lagged`: a bias-corrected variance of the phi before the present one.
        surrogate: Gradient of a sync step: `adversarial`, or `gsam`, the adversarial gradient minus `alpha` times the
            component of the base gradient that is orthogonal to it.
        seed: Seed of the timer, of random ascents and of the placebo, which use generators of their own. Two trainings
            are two samples of a control only with two seeds; `lossscope train` uses the seed of the batch order.

    Raises:
        OptimizerError: A setting is out of bounds, no parameter is a matrix, a gradient is sparse, or a step
            needs a second gradient and has none.

    Source:
        The public ARS2-Neo, as formulas; LookSAM (Liu et al., 2022) for the shear; Muon (Jordan, 2024).
    """

    rule = "ars2"

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        mode: Literal["base", "sync", "lazy", "aga", "timer"] = "base",
        rho: float = 0.1,
        k: int | None = None,
        alpha: float = 0.1,
        aga_beta: float = 0.99,
        aga_lambda: float = 2.0,
        aga_gamma: float = 2.0,
        replay_counts: Sequence[int] = (),
        replay_window: int = 0,
        energy: Literal["reference", "unit", "rms"] = "reference",
        newton_schulz: str = "keller",
        ns_steps: int = 5,
        ns_dtype: torch.dtype | Literal["auto"] = "auto",
        ns_norm: Literal["frobenius", "schatten4"] = "frobenius",
        perturbation: Literal["ars2", "paper", "sam", "asam", "random", "random_ball"] = "ars2",
        shear: Literal["looksam", "placebo", "signflip", "off"] = "looksam",
        orthogonalize: bool = True,
        flatten: bool = False,
        trigger: Literal["reference", "lagged"] = "reference",
        surrogate: Literal["adversarial", "gsam"] = "adversarial",
        seed: int = 0,
    ) -> None:
        settings = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "mode": mode,
            "rho": rho,
            "k": period_of(mode, k),
            "alpha": alpha,
            "aga_beta": aga_beta,
            "aga_lambda": aga_lambda,
            "aga_gamma": aga_gamma,
            "replay_counts": tuple(replay_counts),
            "replay_window": replay_window,
            "energy": energy,
            "newton_schulz": newton_schulz,
            "ns_steps": ns_steps,
            "ns_dtype": ns_dtype,
            "ns_norm": ns_norm,
            "perturbation": perturbation,
            "shear": shear,
            "orthogonalize": orthogonalize,
            "flatten": flatten,
            "trigger": trigger,
            "surrogate": surrogate,
            "seed": seed,
        }
        super().__init__(params, {**DEFAULTS, **settings})
        if not any(track_of(g, p) == "matrix" for g in self.param_groups for p in g["params"]):
            count = sum(len(g["params"]) for g in self.param_groups)
            raise OptimizerError(
                f"ARS2Neo found no matrix (ndim >= 2) among {count} parameters; use torch.optim.AdamW for them"
            )

    @property
    def declared(self) -> Rule:
        """Declaration of ARS2-Neo's rule."""
        return _ARS2

    def rule_of(self, group: dict[str, Any], parameter: Tensor) -> Rule:
        """Return the rule of a parameter; without orthogonalization a matrix steps along Adam's direction."""
        rule = super().rule_of(group, parameter)
        return _ALONG_ADAM if rule is _ARS2 and not group["orthogonalize"] else rule

    def take(self, group: dict[str, Any], moments: Sequence[ParameterStep]) -> list[Update]:
        """Step matrices and vectors of a group together: their moments are updated in one call."""
        return self.declared.step(group, moments)
