"""The rotary transformer of the founding experiments beside Qwen3 of transformers, with the same weights."""

from __future__ import annotations

import pytest
import torch

transformers = pytest.importorskip("transformers", exc_type=ImportError)

from lossscope.landscape.training.rotary_transformer import RotaryTransformer  # noqa: E402

PARTS = {
    "self_attn.q_proj": "q",
    "self_attn.k_proj": "k",
    "self_attn.v_proj": "v",
    "self_attn.o_proj": "mix",
    "self_attn.q_norm": "q_norm",
    "self_attn.k_norm": "k_norm",
    "mlp.gate_proj": "gate",
    "mlp.up_proj": "up",
    "mlp.down_proj": "down",
    "input_layernorm": "first",
    "post_attention_layernorm": "second",
}


@pytest.mark.filterwarnings("default")
def test_it_has_the_logits_of_qwen3() -> None:
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=37,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=16,
        intermediate_size=64,
        tie_word_embeddings=True,
        rope_parameters={"rope_theta": 10_000.0, "rope_type": "default"},
        rms_norm_eps=1e-6,
    )
    theirs = transformers.Qwen3ForCausalLM(config).double().eval()
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.3)
    ours = RotaryTransformer(37, 32, 3, 4, 16, 64).double()
    weights = {"tokens.weight": theirs.model.embed_tokens.weight, "norm.weight": theirs.model.norm.weight}
    for place, layer in enumerate(theirs.model.layers):
        for name, part in PARTS.items():
            weights[f"blocks.{place}.{part}.weight"] = layer.get_submodule(name).weight
    ours.load_state_dict(weights)
    ids = torch.randint(0, 37, (2, 23))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=1e-6, atol=1e-6)
