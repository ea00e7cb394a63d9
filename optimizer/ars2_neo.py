"""ARS2-Neo: whitens like Adam, orthogonalizes like Muon, ascends like SAM, and can be watched doing so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch

from lossscope.optimizer.ascent.two_pass import Pass
from lossscope.optimizer.base import Params, TwoPassOptimizer
from lossscope.optimizer.errors import OptimizerError
from lossscope.optimizer.hyperparameters import DEFAULTS, checked_group, period_of
from lossscope.optimizer.update.adam import ParameterStep, Update, adam_state, apply_step, decay, whitened
from lossscope.optimizer.update.matrix_view import track_of

__all__ = ["ARS2Neo", "Pass"]


class ARS2Neo(TwoPassOptimizer):
    r"""The optimizer; by default its numbers are those of the published ARS2-Neo.

    Per matrix, with moments `m`, `v` and their bias-corrected forms:
    `A = m_hat / (sqrt(v_hat) + eps)`, `E = |A|_F`, `O` = Newton-Schulz of `A`,
    `W <- (1 - lr wd) W - lr E O`. Vectors take Adam's step `lr A`. On a sync step the gradient is the one
    at `w + e`. As `|O|_F` is about `0.87 sqrt(min(m, n))`, a step is that many times Adam's at the same lr.

    Steps are taken by `passes()` and `step()`, or by `step(closure)`: see `TwoPassOptimizer`.

    Args:
        params: Parameters, `(name, parameter)` pairs or groups. Shape decides the track (`ndim >= 2`:
            matrix) unless a group says `track="matrix"` or `"vector"`; see `routing`.
        lr: Learning rate.
        betas: Decay of the two moments.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled; applied before the step as `1 - lr * weight_decay`.
        mode: `base`: one pass. `sync`: two passes every step. `lazy`: two every `k` steps, the stored shear
            injected between. `aga`: two when the gradient turns against the stored shear, or after `k` steps.
            `timer`: two at random, as often as aga's trigger fires where phi is noise: a control. A measured aga run is
            matched by an `aga_lambda` with Phi(-aga_lambda) its chance a step before the cap, as `trigger_test`
            measures it, and by its mean alpha, which is alpha times the mean growth.
        rho: Radius of the ascent; at 0 there is none, at the cost of `base`.
        k: The lazy period (default 5) or the longest interval of aga and timer (default 10); an error in other modes.
        alpha: Share of the gradient's norm that the shear is injected with.
        aga_beta: Decay of the running mean of phi^2.
        aga_lambda: The trigger's threshold in standard deviations of phi.
        aga_gamma: Exponent of `(1 + max(0, phi))` by which alpha grows.
        energy: Size of a matrix step: `reference` E O, `unit` E O / |O|_F, `rms` 0.2 sqrt(max(m, n)) O.
        newton_schulz: Preset of polynomial coefficients, see `newton_schulz.PRESETS`.
        ns_steps: How many polynomials; `deepseek_v4` needs 10, `keller_finished` 8.
        ns_dtype: Dtype of the products for float32 parameters: `"auto"` is float32 on the CPU and bfloat16
            on CUDA. A `torch.dtype` holds for all.
        ns_norm: What Newton-Schulz divides a matrix by first: `frobenius`, or `schatten4`, which is smaller.
        perturbation: `ars2` (per tensor, times |w|), `paper` (global), `sam`, `asam`; or a control in a random
            direction: `random` with the radii of `ars2`, `random_ball` with the one of `paper` and `sam`.
        shear: What is injected: `looksam`, `placebo` (random, orthogonal, same norm), `signflip`, `off`.
        orthogonalize: False follows `A` in place of `O`, with steps of exactly the same norm.
        flatten: Cuts raw 3-D parameters `(h, d, n)` as one matrix `(h d, n)` in place of `h` matrices. A
            group with `convolution=True` is cut as `(out, -1)`, as everything with more dimensions is.
        trigger: `reference`, or `lagged`: a bias-corrected variance of the phi before the present one.
        surrogate: What a sync step follows: the `adversarial` gradient, or `gsam`, that less `alpha` times the part of
            the base gradient that is orthogonal to it.
        seed: Of the timer, of random ascents and of the placebo, which draw from generators of their own. Two trainings
            are two samples of a control only with two seeds; `lossscope train` takes that of the order of batches.

    Raises:
        OptimizerError: A setting out of bounds, no matrix among the parameters, sparse gradients, or a step
            that needs a second gradient and has none.

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
        settings = {name: value for name, value in locals().items() if name in DEFAULTS}
        super().__init__(params, {**DEFAULTS, **settings, "k": period_of(mode, k)})
        if not any(track_of(g, p) == "matrix" for g in self.param_groups for p in g["params"]):
            count = sum(len(g["params"]) for g in self.param_groups)
            raise OptimizerError(
                f"ARS2Neo found no matrix (ndim >= 2) among {count} parameters; use torch.optim.AdamW for them"
            )

    def fresh_state(self, group: dict[str, Any], parameter: torch.Tensor) -> dict[str, Any]:
        """Adam's: a step count and two moments."""
        return adam_state(parameter)

    def check_group(self, group: dict[str, Any], first: dict[str, Any]) -> None:
        """Settings of the whole optimizer cannot differ from those of the first group."""
        checked_group(group, first)

    def take(self, group: dict[str, Any], moments: Sequence[ParameterStep]) -> list[Update]:
        """Whiten, decay, and step along the orthogonal factors."""
        A = whitened(moments, group["betas"], group["eps"])
        decay(group, moments)
        return [apply_step(group, m.parameter, a) for m, a in zip(moments, A, strict=True)]
