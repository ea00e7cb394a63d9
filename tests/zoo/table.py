"""Table of all members."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from zoo import layers, more_losses, own_losses, sequence, unusual, vision
from zoo.member import Member, first_length, same

__all__ = ["MEMBERS"]


def pixels(batch: Any) -> float:
    """Return the number of labelled pixels."""
    return float((batch[1] != vision.IGNORED).sum())


def labels(batch: Any) -> float:
    """Return the number of labels."""
    return float(batch[1].numel())


def summed_weights(batch: Any) -> float:
    """Return the class weights of the batch, by whose sum torch divides."""
    return float(own_losses.class_weights(batch[0])[batch[1]].sum())


def graph_count(batch: Any) -> float:
    """Return the number of graphs."""
    return float(len(batch["y"]))


# reasons for which a measure cannot be had of a member, by measure
NO_LOGITS = dict.fromkeys(("log_fisher_rao", "logit_scale", "softmax_ghost_radius"), "requires a loss with logits")
NO_OUTPUTS = {
    "gauss_newton": "outputs(model, batch)",
    "residual": "outputs(model, batch)",
    "fisher": "outputs(model, batch)",
    "fisher: true": "model_fisher",
} | NO_LOGITS
NO_FORWARD = {"hessian: forward": "forward AD", "gauss_newton: forward": "forward AD"}
WRONG_BACKWARD = dict.fromkeys(
    ("hessian: batched", "pyhessian_spectrum", "batch_sharpness", "directional_sharpness", "step_quality"),
    "WeightNormInterface",
)
BATCH_STATISTICS = {"sampled_eigenvalue": "batch norm", "Objective: split": "batch norm"}
NO_LAST_LAYER = {"relative_flatness": "the last layer is not known"}  # tied, reparametrized, used in the loss too
NEVER_RISES = {"critical_learning_rate": "does not rise along the step"}  # normalized outputs, or unbounded below
NO_PARTS = dict.fromkeys(("sampled_eigenvalue", "Objective: split"), "mean over samples")
ONE_PIECE = dict.fromkeys(("sampled_eigenvalue", "Objective: split"), "fails on a part")
COARSE = {"gradient_smoothness": "rounding"}
REENTRANT = {"": "use_reentrant"}

MEMBERS: dict[str, Member] = {
    "mlp": Member(vision.mlp, slow=True),
    "mlp_double": Member(vision.mlp_double, digits=1e-14, sampled=True),
    "regression": Member(vision.regression, refuses=NO_LOGITS),
    "resnet": Member(vision.resnet),
    "resnet_frozen": Member(vision.resnet, options={"mode": "frozen"}, refuses=BATCH_STATISTICS, slow=True),
    "segmentation": Member(vision.segmentation, options={"count": pixels}, terms=pixels, refuses=NO_OUTPUTS),
    "weight_norm": Member(vision.weight_norm, refuses=NO_FORWARD | WRONG_BACKWARD | NO_LAST_LAYER, slow=True),
    "weight_norm_legacy": Member(
        vision.weight_norm_legacy, refuses=NO_FORWARD | WRONG_BACKWARD | NO_LAST_LAYER, slow=True
    ),
    "gpt": Member(sequence.gpt, terms=labels, refuses=NO_LAST_LAYER),
    "gpt_11m": Member(sequence.gpt_11m, terms=labels, slow=True),
    "lstm": Member(sequence.lstm, refuses=NO_FORWARD, slow=True),
    "gru": Member(sequence.gru, slow=True),
    "lora": Member(sequence.lora, refuses=NO_LAST_LAYER),
    "sparse_embedding": Member(sequence.sparse_embedding),
    "pinn": Member(own_losses.pinn, refuses=NO_OUTPUTS | NO_LAST_LAYER | {"hessian: forward": "requires_grad_"}),
    "gradient_penalty": Member(
        own_losses.gradient_penalty,
        refuses=NO_OUTPUTS
        | NO_LAST_LAYER
        | {"hessian: forward": "requires_grad_"}
        | dict.fromkeys(WRONG_BACKWARD, "NativeLayerNorm"),
    ),
    "gan": Member(
        own_losses.gan,
        refuses=NO_OUTPUTS | BATCH_STATISTICS | {"batch_sharpness": "requires at least 2 batches"},
    ),
    "class_weighted": Member(
        own_losses.class_weighted,
        options={"count": summed_weights},
        terms=summed_weights,
        refuses=NO_OUTPUTS,
        sampled=True,
    ),
    "simclr": Member(
        own_losses.simclr,
        options={"additive": False},
        terms=same,
        refuses=NO_OUTPUTS | NO_PARTS | NEVER_RISES | {"pac_bayes_sigma": "no radius up to"},
    ),
    "graphs": Member(
        own_losses.graphs, options={"count": graph_count}, terms=graph_count, refuses=NO_OUTPUTS | ONE_PIECE
    ),
    "bf16": Member(
        unusual.bf16,
        digits=1e-3,
        refuses={"keskar_sharpness": "dtype of these parameters"}
        | dict.fromkeys(("basin_radius", "pac_bayes_sigma", "gradient_smoothness"), "rounding"),
    ),
    "autocast_loss": Member(
        unusual.autocast_loss, twin=unusual.without_autocast, digits=1e-3, refuses=NO_OUTPUTS | COARSE
    ),
    "autocast_forward": Member(
        unusual.autocast_forward, twin=unusual.without_autocast, digits=1e-3, refuses=COARSE, slow=True
    ),
    "checkpointed": Member(
        unusual.checkpointed,
        refuses={"hessian: forward": "saved tensor hooks"},
        slow=True,
    ),
    "checkpointed_reentrant": Member(unusual.checkpointed_reentrant, twin=unusual.checkpointed, refuses=REENTRANT),
    "compiled": Member(unusual.compiled, twin=vision.mlp, slow=True),
    "odd_shapes": Member(unusual.odd_shapes, refuses=NO_LAST_LAYER),
}

# members of the slow suite, but for these
NO_MEAN = {"batch_norm_without_statistics", "one_step"}  # losses that are no weighted mean of their batches
FAST = {"forces", "captured", "tied_by_list"}
# reasons beyond those that all losses of people's own share
FURTHER: dict[str, dict[str, str]] = {
    "group_norm": {"hessian: batched": "size of tensor"},
    "custom_right": {
        "hessian: forward": "setup_context",
        "gauss_newton: forward": "jvp function",
    },
    "custom_once": {
        "hessian: forward": "setup_context",
        "gauss_newton: forward": "jvp function",
        **dict.fromkeys(WRONG_BACKWARD, "backward pass of Once"),
    },
    "packed": {"hessian: forward": "data pointer"},
    "huber": {"hessian: forward": "forward AD"},
    # noise lowers this loss at every level
    "cosine": dict.fromkeys(("basin_radius", "pac_bayes_sigma"), "no radius up to") | NEVER_RISES,
    "triplet": NEVER_RISES,
    "by_layer": NEVER_RISES | NO_LAST_LAYER,
    **dict.fromkeys(("twice", "functional_pinn", "captured", "tied_by_list"), NO_LAST_LAYER),
    "ctc": {
        "hessian: forward": "forward AD",
        **dict.fromkeys(
            ("hessian: batched", "pyhessian_spectrum", "batch_sharpness", "directional_sharpness", "step_quality"),
            "_ctc_loss_backward",
        ),
    },
    "forces": {"hessian: forward": "requires_grad_"} | NO_LAST_LAYER,
    "by_backward": {"hessian: forward": "requires_grad_"} | NO_LAST_LAYER,
    "grid_sample": NO_FORWARD,
    "batch_norm_without_statistics": NO_PARTS | {"Objective: split": "fails on a part"},
    "gradient_norm": {"batch_sharpness": "requires at least 2 batches", **NO_PARTS, **NO_LAST_LAYER},
    "one_step": {"batch_sharpness": "requires at least 2 batches", **NO_PARTS, **NO_LAST_LAYER},
    "teacher": {
        "batch_sharpness": "requires at least 2 batches",
        **BATCH_STATISTICS,
    },
}
for _name, _build in (layers.LAYERS | more_losses.LOSSES | more_losses.REACHING).items():
    _own = _name not in layers.LAYERS and _name != "tied_by_list"
    _reasons = (NO_OUTPUTS if _own else {}) | FURTHER.get(_name, {})
    MEMBERS[_name] = Member(
        _build,
        refuses=_reasons,
        options={"additive": False} if _name in NO_MEAN else {},
        terms=same if _name in NO_MEAN else first_length,
        slow=_name not in FAST,
    )

# members that torch.fx cannot trace, or with layers whose rescalings are not known or must be folded first
for _name in (
    *("resnet", "resnet_frozen", "weight_norm", "weight_norm_legacy", "gpt", "lstm", "gru", "lora", "gradient_penalty"),
    *("graphs", "compiled", "odd_shapes", "encoder", "group_norm", "transposed", "pooled", "rms_norm", "experts"),
    *("router", "fourier", "solve", "sorted", "custom_right", "custom_once", "grid_sample", "twice", "orthogonal"),
    *("spectral_norm", "data_parallel", "packed", "batch_norm_without_statistics", "masked_attention", "forces"),
    "tied_by_list",
):
    _refused = {**MEMBERS[_name].refuses, "orbit_trace": "rescalings of this network are not all known"}
    MEMBERS[_name] = replace(MEMBERS[_name], refuses=_refused)
