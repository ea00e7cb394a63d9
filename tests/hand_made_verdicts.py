"""Hand-made verdicts, and runs whose sharpness falls with their loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lossscope.landscape.run import Run
from lossscope.landscape.storage.run_store import RunStore
from lossscope.landscape.verdicts.verdict import PANEL, RAW, Note, Reason, Row, Verdict

LOSSES = (2.3, 1.0, 0.3, 0.1, 0.03, 0.01, 0.004)
RATIOS = (0.44, 0.57, 0.60, 0.71, 0.47)


def row(place: int, ratio: float, *, a: str = "sync", b: str = "base", n: int = 10, spread: float = 0.1) -> Row:
    """Return a row of the panel (the raw one at place 4) with a ratio and a spread."""
    kind = (*PANEL, RAW)[place]
    shape = np.linspace(-1, 1, n) if n > 1 else np.zeros(1)
    differences = math.log(ratio) + (shape / shape.std(ddof=1) if n > 1 else shape) * spread
    half = 2.262 * spread / math.sqrt(n) if n > 1 else math.nan
    low, high = math.log(ratio) - half, math.log(ratio) + half
    word = "flatter" if high < 0 else "sharper" if low > 0 else "small" if max(-low, high) < 0.223 else "unclear"
    return Row(
        *("digits-mlp", a, b, kind.label, kind.measure, kind.gauge, n),
        *(ratio, math.exp(low), math.exp(high), int((differences < 0).sum()), spread if n > 1 else math.nan, 0.02),
        word="unclear" if n == 1 else word,  # type: ignore[arg-type]
        small=bool(max(-low, high) < 0.223),
        differences=tuple(differences.tolist()),
        seeds=tuple(map(str, range(n))),
        counts=place < len(PANEL),
    )


def verdict(
    status: str = "SUPPORTED",
    ratios: Sequence[float] = RATIOS,
    *,
    sentence: str = "sync is flatter than base, on all 4 measures, by at least 24 %.",
    claim: str = "",
    a: str = "sync",
    b: str = "base",
    n: int = 10,
    **more: object,
) -> Verdict:
    """Return a verdict with these ratios."""
    settings: dict[str, object] = {
        "rows": tuple(row(place, one, a=a, b=b, n=n) for place, one in enumerate(ratios)),
        "pairs": {"digits-mlp": n},
        "level": 0.02,
        "change": ("Not tried: another task; another learning rate of base.",),
        "notes": (Note("ONE_TASK", "One task only."),),
        "kind": "flatter",
        "text": f"{a} is flatter",
        "small": False,
    }
    return Verdict(claim=claim, status=status, sentence=sentence, **{**settings, **more})  # type: ignore[arg-type]


OPEN = Row(
    *("digits-mlp", "sync", "base", "worst, balanced", "balanced_lambda_max", "balanced", 9),
    *(math.nan, math.nan, math.nan, 0, math.nan, math.nan, "open"),
    small=False,
    differences=(math.nan,) * 10,
    seeds=tuple(map(str, range(10))),
    reasons=(Reason("MISSING_LEVEL", "1 of 10 pairs never reached loss 0.02 (base-s3: 0.05)", ("base-s3",)),),
)

EVERY = {
    "supported": verdict(claim="C1a"),
    "contradicted": verdict("CONTRADICTED", (1.5, 1.4, 1.3, 1.2, 0.6), claim="C2", sentence="sync is sharper."),
    "equivalent": verdict("EQUIVALENT", (1.0, 0.98, 1.02, 1.05, 0.6), claim="C3", sentence="They differ little."),
    "mixed": verdict("MIXED", (0.7, 0.7, 1.3, 1.4, 1.2), claim="C4", sentence="It depends on what flat means."),
    "inconclusive": verdict("INCONCLUSIVE", (0.9, 0.8, 1.0, 0.95, 0.9), claim="C5", sentence="10 pairs cannot tell."),
    "missing": verdict("INCONCLUSIVE", claim="C6", rows=(row(0, 0.5), OPEN), sentence="1 of 10 pairs is missing."),
    "few": verdict("NOT_JUDGED", n=3, claim="C7", sentence="3 pairs, 6 are needed."),
    "one": verdict("NOT_JUDGED", n=1, claim="C8", sentence="1 pair, 6 are needed."),
    "none": verdict("NOT_JUDGED", (), pairs={}, claim="C9", sentence="The runs share no seeds.", level=None),
    "identity": verdict(
        "CONTRADICTED",
        (),
        kind="identity",
        pairs={},
        claim="C10",
        level=None,
        sentence="as stated: step 1, condition 1.66",
    ),
}


def trained(path: Path, arm: str, seed: int) -> Run:
    """Write a run whose sharpness falls with its loss, as it falls for `arm`."""
    factor = {"sync": 0.57}.get(arm, 1.0)
    noise = np.random.default_rng([seed, *arm.encode()])
    manifest = {
        "arm": arm,
        "seeds": {"init": seed, "split": seed, "order": seed},
        "config": {"workload": "digits-mlp", "batch_size": 64, "optimizer": arm, "steps": 1000},
        "data_hash": "2e6774e4",
        "loss_unit": "nats",
        "environment": {"lossscope": "0.2.0", "torch": "2.13.0", "python": "3.12"},
    }
    store = RunStore.create(path, manifest)
    for place, loss in enumerate(LOSSES):
        step = 20 * 2**place
        value = loss * math.exp(0.05 * math.cos(7 * seed + place))
        shared = {"step": step, "mode": "eval", "engine": "lossscope", "dtype": "float32", "converged": True}
        rows = {"train_loss": value, "loss": value, "test_loss": 0.07 + 0.01 * (arm != "sync"), "sigma_star": 0.3}
        rows |= {one.measure: factor * 40 * value**0.5 * math.exp(0.05 * noise.normal()) for one in (*PANEL, RAW)}
        rows["test_loss"] += 0.002 * noise.normal()
        for measure, number in rows.items():
            store.append("probes", {**shared, "measure": measure, "value": number, "stderr": 0.0, "gauge": "raw"})
        store.append(
            "steps", {"step": step, "loss": value, "passes": 2 if arm == "sync" else 1, "synced": arm == "sync"}
        )
    store.close("finished", "the loop ended")
    return Run.open(path)
