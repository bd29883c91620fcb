"""Tiny random models of many architectures, with greedy choices that are not close calls."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

COMMON = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 8}
MAMBA_1 = {"state_size": 8, "conv_kernel": 4, "expand": 2, "time_step_rank": 4}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
SLIDING = {"sliding_window": 6}

# Decoded by in_place itself, every one of which keeps keys and values of all columns.
ATTENTION = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "qwen3_moe": {**EXPERTS, "decoder_sparse_step": 1},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "gemma3_text": {
        **SLIDING,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "query_pre_attn_scalar": 8,
    },
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, **SLIDING},
    "deepseek_v3": {
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "first_k_dense_replace": 1,
    },
    "phi3": {},
    "olmo2": {},
    "cohere2": SLIDING,
    "smollm3": {},
    "granite": {"logits_scaling": 4.0},
    "glm4": {},
    "hunyuan_v1_dense": {},
    "bloom": {},
    "gptj": {"rotary_dim": 8},
    "gpt_neox": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "falcon": {"head_dim": None},
    "starcoder2": SLIDING,
}
# Decoded by generate: some keep a state that in_place does not know, MPT counts rejected columns.
OTHERS = {
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2, "block_ff_dim": 48, "conv_L_cache": 3},
    "qwen3_next": {**EXPERTS, "shared_expert_intermediate_size": 16, **LINEAR},
    "qwen3_5_text": LINEAR,
    "granitemoehybrid": {
        **MAMBA,
        "layer_types": ["mamba", "attention"] * 2,
        "num_local_experts": 0,
        "shared_intermediate_size": 48,
        "mamba_expand": 2,
    },
    "falcon_h1": {**MAMBA, "mamba_d_ssm": 32, "mamba_n_heads": 4},
    "mamba2": {
        "num_heads": 8,
        "state_size": 8,
        "expand": 2,
        "n_groups": 1,
        "chunk_size": 8,
        "conv_kernel": 4,
    },
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "num_experts": 2,
        "use_mamba_kernels": False,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
    },
    "mamba": MAMBA_1,
    "falcon_mamba": MAMBA_1,
    "bamba": {**MAMBA, "attn_layer_indices": [1, 3]},
    "recurrent_gemma": {
        "lru_width": 32,
        "attention_window_size": 8,
        "block_types": ["recurrent", "attention"],
    },
    "minimax": {},
    "mpt": {},
}
# Refused: RWKV knows no padding, xLSTM's state has no rows to spare.
NEITHER = {"rwkv": {"attention_hidden_size": 32, "context_length": 64}, "xlstm": {}}

ARCHITECTURES = {**ATTENTION, **OTHERS, **NEITHER}


def random_architecture(name):
    """A model of an architecture; the weights are a function of its name's configuration alone."""
    options = {**COMMON, **ARCHITECTURES[name]}
    if ARCHITECTURES[name].get("head_dim", 0) is None:
        del options["head_dim"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **options)).eval()
        model = model.float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3.0)
    return model
