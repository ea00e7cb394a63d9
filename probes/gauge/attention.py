"""Symmetries between the weights of one attention layer: query with key, and value with output, head by head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from torch import nn

from lossscope.probes.gauge.folding import ConstantFold
from lossscope.probes.gauge.symmetry import Mixing, Slot

__all__ = ["MASKS", "head_symmetries", "inner_symmetries", "input_slots", "is_plain"]

MASKS: Final = ("key_padding_mask", "attn_mask")
_QUERY, _KEY, _VALUE = range(3)
_WEIGHTS: Final = {"in_proj_weight", "out_proj.weight"}
_BIASES: Final = {"in_proj_bias", "out_proj.bias"}


def is_plain(module: nn.MultiheadAttention, own: Mapping[str, str]) -> bool:
    """Return True if queries, keys and values have one width and only the inputs are attended to.

    Args:
        module: The attention layer.
        own: Names of its parameters in the network; others than the usual ones are those of a parametrization.
    """
    usual = own.keys() <= _WEIGHTS | _BIASES and own.keys() >= _WEIGHTS
    return usual and module._qkv_same_embed_dim and module.bias_k is None and not module.add_zero_attn


def input_slots(
    own: Mapping[str, str], size: int, sources: Sequence[Any]
) -> list[tuple[Any, tuple[Slot, Slot | None]]]:
    """Return each input of a plain attention layer with the weights that read it, and their bias.

    Args:
        own: Names of the parameters in the network.
        size: Width of the inputs.
        sources: Queries, keys and values; they are one input where all are the same.
    """
    weight, bias = own["in_proj_weight"], own.get("in_proj_bias")
    if sources[0] is sources[1] is sources[2]:
        every = Slot(weight, (3 * size, size), (1, 0))
        return [(sources[0], (every, None if bias is None else Slot(bias, (3 * size,), (0,))))]
    return [
        (
            source,
            (
                Slot(weight, (3, size, size), (1, 0), pick=(kind,)),
                None if bias is None else Slot(bias, (3, size), (0,), pick=(kind,)),
            ),
        )
        for kind, source in enumerate(sources)
    ]


def inner_symmetries(
    name: str, module: nn.MultiheadAttention, own: dict[str, str]
) -> tuple[list[Mixing], list[ConstantFold]]:
    r"""Return the bases of the heads that may change, and the biases that may move.

    Scores :math:`(W_Q x + b_Q)^\top (W_K y + b_K)` stay where the rows of query and key are multiplied by a matrix and
    its inverse transpose; outputs :math:`W_O W_V x` likewise. The softmax over y ignores :math:`b_K`, and as its
    weights add up to 1, :math:`b_V` is the same as :math:`W_O b_V` in the bias of the output.

    Args:
        name: Name of the layer.
        module: The layer, which is plain.
        own: Names of its parameters in the network.

    Returns:
        The symmetries, and what may be folded.
    """
    size, heads = module.embed_dim, module.num_heads
    width = size // heads
    weight, bias, out = own["in_proj_weight"], own.get("in_proj_bias"), own["out_proj.weight"]

    def part(kind: int, head: int) -> list[Slot]:
        """Return the rows of one head, with its bias but for a key, where it has no effect."""
        rows = [Slot(weight, (3, heads, width, size), (0, 1), pick=(kind, head))]
        if kind != _KEY and bias is not None:
            rows.append(Slot(bias, (3, heads, width), (0,), pick=(kind, head)))
        return rows

    pairs: list[Mixing] = []
    for head in range(heads):
        columns = Slot(out, (size, heads, width), (1, 0), pick=(slice(None), head))
        query, key, value = (part(kind, head) for kind in (_QUERY, _KEY, _VALUE))
        pairs += head_symmetries(f"{name}, head {head}", width, query, key, value, [columns])
    if bias is None:
        return pairs, []
    of_key, of_value = (Slot(bias, (3, size), (0,), pick=(kind,)) for kind in (_KEY, _VALUE))
    of_output = Slot(own["out_proj.bias"], (size,), (0,))
    output = ConstantFold(of_value, (Slot(out, (size, size), (1, 0)),), (of_output,), (1,))
    return pairs, [ConstantFold(of_key, (), (), ()), output]


def head_symmetries(
    name: str, width: int, query: list[Slot], key: list[Slot], value: list[Slot], output: list[Slot]
) -> list[Mixing]:
    """Return the two symmetries of one head of attention without rotary positions.

    Args:
        name: The head, as text.
        width: Width of queries and keys, and of values.
        query: Rows that write the queries, with their bias.
        key: Rows that write the keys; a bias of keys has no effect, and is none of them.
        value: Rows that write the values, with their bias.
        output: Columns that read the values.

    Returns:
        The bases of queries with keys, and of values.
    """
    return [
        Mixing(f"the queries of {name}", width, tuple(query), tuple(key)),
        Mixing(f"the values of {name}", width, tuple(value), tuple(output)),
    ]
