"""Table of all members."""

from __future__ import annotations

from typing import Any

from zoo import own_losses, sequence, unusual, vision
from zoo.member import Member, same

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


REENTRANT = "use_reentrant"

MEMBERS: dict[str, Member] = {
    "mlp": Member(vision.mlp),
    "mlp_double": Member(vision.mlp_double, digits=1e-14),
    "regression": Member(vision.regression),
    "resnet": Member(vision.resnet),
    "resnet_frozen": Member(vision.resnet, options={"mode": "frozen"}),
    "segmentation": Member(vision.segmentation, options={"count": pixels}, terms=pixels),
    "weight_norm": Member(vision.weight_norm),
    "weight_norm_legacy": Member(vision.weight_norm_legacy),
    "gpt": Member(sequence.gpt, terms=labels),
    "gpt_11m": Member(sequence.gpt_11m, terms=labels, slow=True),
    "lstm": Member(sequence.lstm),
    "gru": Member(sequence.gru),
    "lora": Member(sequence.lora),
    "sparse_embedding": Member(sequence.sparse_embedding),
    "pinn": Member(own_losses.pinn),
    "gradient_penalty": Member(own_losses.gradient_penalty),
    "gan": Member(own_losses.gan),
    "class_weighted": Member(own_losses.class_weighted, options={"count": summed_weights}, terms=summed_weights),
    "simclr": Member(own_losses.simclr, options={"additive": False}, terms=same),
    "graphs": Member(own_losses.graphs, options={"count": graph_count}, terms=graph_count),
    "bf16": Member(unusual.bf16, digits=1e-2),
    "autocast_loss": Member(unusual.autocast_loss, twin=unusual.without_autocast, digits=1e-2),
    "autocast_forward": Member(unusual.autocast_forward, twin=unusual.without_autocast, digits=1e-2),
    "checkpointed": Member(unusual.checkpointed),
    "checkpointed_reentrant": Member(
        unusual.checkpointed_reentrant, twin=unusual.checkpointed, refuses={"": REENTRANT}
    ),
    "compiled": Member(unusual.compiled),
    "odd_shapes": Member(unusual.odd_shapes),
}
