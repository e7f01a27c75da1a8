"""Answers of small models of every family by transformers, for tests/models.rs: `python tests/golden/families.py [CASE…]`.

Writes tests/golden/families/NAME.json. Needs torch and transformers; the tests need neither: they make the same weights from the same
hash, store them as a folder and as a GGUF file, and compare.

Weights: value i of a tensor is base + scale * u, where u in [-1, 1) comes from a hash of the tensor's name and i (`uniform`), all in
f32, then rounded to the dtype of the file. Transformers computes with them in f32.

Of an encoder the last hidden state of the last token stands in place of logits, and nothing is generated. One that says how it
pools has embeddings, too: as sentence-transformers' modules Pooling, Dense and Normalize make them.

A GGUF file is laid out as llama.cpp's converter lays it out: its names, rows of queries and keys permuted where the family has it so, those of one part together,
1 added to the norms of Gemma and Nemotron, keys and values of latent vectors apart, those of keys transposed head by head, matrices of `Conv1D` transposed, those of all experts stacked, those of Llama 4 turned, nibbles and
scales of MXFP4 in blocks, vectors, learned positions, kinds of
texts and routers in f32.
"""

import json
import pathlib
import sys

import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText

FOLDER = pathlib.Path(__file__).parent / "families"
GOLDEN = 0x9E3779B97F4A7C15
MASK = 2**64 - 1
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
N_GREEDY = 6


def mix(value):
    """The finaliser of SplitMix64, of an integer or of an array."""
    if isinstance(value, int):
        value = (value + GOLDEN) & MASK
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
        return value ^ (value >> 31)
    value = value + np.uint64(GOLDEN)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def uniform(name, n):
    key = 0
    for byte in name.encode():
        key = mix(key ^ byte)
    hashes = mix(np.uint64(key) + np.arange(n, dtype=np.uint64) * np.uint64(GOLDEN))
    return (hashes >> np.uint64(40)).astype(np.float32) / np.float32(2**23) - np.float32(1)


def spread(name, shape, is_offset, is_transposed):
    """Base and scale of a tensor's values."""
    if len(shape) == 1:
        if name.endswith(("bias", "A_log")):
            return 0.0, 0.25
        return (0.0, 0.25) if is_offset and "linear_attn" not in name else (1.0, 0.25)
    # Queries and keys are large enough that attention looks at some positions more than at others.
    if name.endswith((".experts.gate_up_proj", ".experts.down_proj")) and len(shape) == 3 and "feed_forward" in name:
        # Rows are inputs.
        return 0.0, float(np.float32(1.4 / np.sqrt(shape[1])))
    is_query_key = any(part in name for part in ["q_proj", "k_proj", "qkv_proj", "c_attn", "query_key_value", "self.query", "self.key", "Wqkv", "q_b_proj", "kv_b_proj"])
    return 0.0, float(np.float32((2.0 if is_query_key else 1.4) / np.sqrt(shape[0 if is_transposed else -1])))


# What GGUF files call the parts of a layer.
COMMON = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
}
MIXTRAL = {"block_sparse_moe.gate": "ffn_gate_inp"}
SHARED = {"mlp.shared_experts.gate_proj": "ffn_gate_shexp", "mlp.shared_experts.up_proj": "ffn_up_shexp",
          "mlp.shared_experts.down_proj": "ffn_down_shexp"}
DEEPSEEK = SHARED | {"self_attn.q_a_proj": "attn_q_a", "self_attn.q_a_layernorm": "attn_q_a_norm", "self_attn.q_b_proj": "attn_q_b",
                     "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa", "self_attn.kv_a_layernorm": "attn_kv_a_norm",
                     "self_attn.kv_b_proj": "attn_kv_b"}
LLAMA4 = {"feed_forward.gate_proj": "ffn_gate", "feed_forward.up_proj": "ffn_up", "feed_forward.down_proj": "ffn_down",
          "feed_forward.router": "ffn_gate_inp", "feed_forward.shared_expert.gate_proj": "ffn_gate_shexp",
          "feed_forward.shared_expert.up_proj": "ffn_up_shexp", "feed_forward.shared_expert.down_proj": "ffn_down_shexp"}
GLM4_MOE = SHARED | {"post_attention_layernorm": "post_attention_norm"}
GPT_OSS = {"post_attention_layernorm": "post_attention_norm", "mlp.router": "ffn_gate_inp"}
GRANITE_MOE = {"block_sparse_moe.router.layer": "ffn_gate_inp"}
AFTER = {"post_attention_layernorm": "post_attention_norm", "post_feedforward_layernorm": "post_ffw_norm"}
GEMMA = AFTER | {"pre_feedforward_layernorm": "ffn_norm"}
GEMMA4_MOE = GEMMA | {"router.proj": "ffn_gate_inp", "post_feedforward_layernorm_1": "post_ffw_norm_1",
                      "pre_feedforward_layernorm_2": "pre_ffw_norm_2", "post_feedforward_layernorm_2": "post_ffw_norm_2"}
GEMMA4_SMALL = GEMMA | {"per_layer_input_gate": "inp_gate", "per_layer_projection": "proj", "post_per_layer_input_norm": "post_norm"}
PHI3 = {"self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up"}
GPT2 = {"ln_1": "attn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "ln_2": "ffn_norm", "mlp.c_fc": "ffn_up",
        "mlp.c_proj": "ffn_down"}
STARCODER2 = {"mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"}
GLM4 = {"post_self_attn_layernorm": "post_attention_norm", "mlp.gate_up_proj": "ffn_up", "post_mlp_layernorm": "post_ffw_norm"}
SEED_OSS = {"post_attention_layernorm": "post_attention_norm"}
PHI = {"self_attn.dense": "attn_output", "mlp.fc1": "ffn_up", "mlp.fc2": "ffn_down"}
NEOX = {"attention.query_key_value": "attn_qkv", "attention.dense": "attn_output", "mlp.dense_h_to_4h": "ffn_up",
        "mlp.dense_4h_to_h": "ffn_down"}
BERT = {"attention.self.query": "attn_q", "attention.self.key": "attn_k", "attention.self.value": "attn_v",
        "attention.output.dense": "attn_output", "attention.output.LayerNorm": "attn_output_norm", "intermediate.dense": "ffn_up",
        "output.dense": "ffn_down", "output.LayerNorm": "layer_output_norm"}
LFM2 = {"operator_norm": "attn_norm", "ffn_norm": "ffn_norm", "self_attn.q_layernorm": "attn_q_norm", "self_attn.k_layernorm": "attn_k_norm",
        "self_attn.out_proj": "attn_output", "conv.conv": "shortconv.conv", "conv.in_proj": "shortconv.in_proj",
        "conv.out_proj": "shortconv.out_proj", "feed_forward.w1": "ffn_gate", "feed_forward.w3": "ffn_up", "feed_forward.w2": "ffn_down"}
QWEN3_5 = {"post_attention_layernorm": "post_attention_norm", "linear_attn.in_proj_qkv": "attn_qkv", "linear_attn.in_proj_z": "attn_gate",
           "linear_attn.in_proj_b": "ssm_beta", "linear_attn.in_proj_a": "ssm_alpha", "linear_attn.conv1d": "ssm_conv1d",
           "linear_attn.norm": "ssm_norm", "linear_attn.out_proj": "ssm_out"}
QWEN3_NEXT = {name: gguf for name, gguf in QWEN3_5.items() if "in_proj" not in name} | {"linear_attn.in_proj_ba": "ssm_ba"}
# Parameters that are no module's weight or bias.
BARE = {"layer_scalar": "layer_output_scale.weight", "router.scale": "ffn_gate_inp.scale", "router.per_expert_scale": "ffn_down_exps.scale",
        "linear_attn.A_log": "ssm_a", "linear_attn.dt_bias": "ssm_dt.bias"}
NOMIC = {"attn.Wqkv": "attn_qkv", "attn.out_proj": "attn_output", "norm1": "attn_output_norm", "mlp.fc11": "ffn_up", "mlp.fc12": "ffn_gate",
         "mlp.fc2": "ffn_down", "norm2": "layer_output_norm"}
ENCODERS = ["bert", "nomic_bert"]
OUTER = {"emb_ln": "token_embd_norm", "model.embedding_norm": "token_embd_norm", "embeddings.word_embeddings": "token_embd", "embeddings.position_embeddings": "position_embd",
         "embeddings.token_type_embeddings": "token_types", "embeddings.LayerNorm": "token_embd_norm",
         "gpt_neox.embed_in": "token_embd", "gpt_neox.final_layer_norm": "output_norm", "embed_out": "output",
         "model.final_layernorm": "output_norm", "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "transformer.wte": "token_embd",
         "transformer.wpe": "position_embd", "transformer.ln_f": "output_norm", "model.embed_tokens_per_layer": "per_layer_token_embd",
         "model.per_layer_model_projection": "per_layer_model_proj", "model.per_layer_projection_norm": "per_layer_proj_norm"}
# Matrices of `Conv1D`, whose rows are inputs.
TRANSPOSED = ["c_attn.weight", "c_proj.weight", "c_fc.weight"]

SMALL = {"vocab_size": 261, "hidden_size": 60, "intermediate_size": 99, "num_hidden_layers": 4, "num_attention_heads": 6,
         "num_key_value_heads": 3, "head_dim": 20, "max_position_embeddings": 256}
# Of what has no `head_dim`.
SPLIT = {key: value for key, value in SMALL.items() if key != "head_dim"}

# The gated delta rule of three value heads for each key head.
DELTA = {"linear_num_key_heads": 2, "linear_num_value_heads": 6, "linear_key_head_dim": 12, "linear_value_head_dim": 10}
DELTA_KEYS = {"full_attention_interval": 4, "ssm.conv_kernel": 4, "ssm.state_size": 12, "ssm.group_count": 2, "ssm.time_step_rank": 6,
              "ssm.inner_size": 60}
NO_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}

BERT_SHAPE = {"vocab_size": 261, "hidden_size": 60, "intermediate_size": 99, "num_hidden_layers": 3, "num_attention_heads": 3,
              "max_position_embeddings": 64}

# Layers that see everything have wider heads.
GEMMA4 = {"num_hidden_layers": 5, "sliding_window": 6, "final_logit_softcapping": 4.0, "hidden_size_per_layer_input": 0,
          "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention", "full_attention"],
          "rope_parameters": {"full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
                              "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}}
GEMMA4_KEYS = {"attention.key_length": 36, "attention.value_length": 36, "rope.dimension_count": 36, "attention.key_length_swa": 20,
               "attention.value_length_swa": 20, "rope.dimension_count_swa": 20, "rope.freq_base": 1e6, "rope.freq_base_swa": 1e4,
               "attention.sliding_window": 6, "attention.sliding_window_pattern": [True, True, False, True, False],
               "attention.shared_kv_layers": 0, "embedding_length_per_layer_input": 0, "final_logit_softcapping": 4.0}
# The last three layers read keys and values of the last own one of their kind, which are not the same two.
GEMMA4_SHARING = GEMMA4 | {"num_hidden_layers": 7, "num_kv_shared_layers": 3, "hidden_size_per_layer_input": 12,
                           "vocab_size_per_layer_input": 261, "use_double_wide_mlp": True,
                           "layer_types": [f"{kind}_attention" for kind in ["sliding", "sliding", "full", "sliding", "sliding", "full", "full"]]}

# Heads of 32 values, of which a quarter turns.
NEOX_SHAPE = {"vocab_size": 261, "hidden_size": 96, "intermediate_size": 99, "num_hidden_layers": 3, "num_attention_heads": 3,
              "max_position_embeddings": 256, "rotary_pct": 0.25}
# Of heads of 24 values; the original context is long enough for all prompts.
LONGROPE = {"hidden_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "original_max_position_embeddings": 64,
            "rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1 + 0.125 * i for i in range(12)],
                                "long_factor": [2 + 0.5 * i for i in range(12)]}}


def case(name, kind, dtype, config, gguf=None, arch=None, own=None, is_permuted=False, lacks="", lengths=(1, 5, 33), is_stacked=False,
         pooling=None, dense=()):
    return {"name": name, "kind": kind, "dtype": dtype, "config": config, "gguf": gguf, "arch": arch or kind, "own": own or {},
            "is_permuted": is_permuted, "lacks": lacks, "lengths": lengths, "is_stacked": is_stacked, "pooling": pooling,
            "dense": dense}


def is_transposed(case, name):
    return case["kind"] == "gpt2" and any(name.endswith(one) for one in TRANSPOSED)


# Experts of odd sizes. What GGUF files say of them.
EXPERTS = {"num_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 37}
EXPERT_KEYS = {"expert_count": 7, "expert_used_count": 3}


# One more that every token takes.
SHARED_EXPERT = {"shared_expert_intermediate_size": 51}
SHARED_EXPERT_KEYS = {"expert_feed_forward_length": 37, "expert_shared_feed_forward_length": 51}


def latent_keys(config):
    """What GGUF files say of compressed keys and values."""
    rank, turns = config["kv_lora_rank"], config["qk_rope_head_dim"]
    lengths = {"attention.kv_lora_rank": rank, "attention.head_count_kv": 1, "attention.key_length": rank + turns,
               "attention.value_length": rank, "attention.key_length_mla": config["qk_nope_head_dim"] + turns,
               "attention.value_length_mla": config["v_head_dim"], "rope.dimension_count": turns}
    return lengths | ({"attention.q_lora_rank": config["q_lora_rank"]} if config["q_lora_rank"] else {})


def former_latent_keys(config):
    """The same of files that have the matrices of keys and values as one."""
    keys = {key: value for key, value in latent_keys(config).items() if not key.endswith("_mla")}
    lengths = {"attention.key_length": config["qk_nope_head_dim"] + config["qk_rope_head_dim"], "attention.value_length": config["v_head_dim"]}
    return keys | lengths | {"attention.head_count_kv": 6}


# Latent heads of 28 values; and of 272, which GPUs have another kernel for; and of 32.
NARROW = {"q_lora_rank": 33, "kv_lora_rank": 20, "qk_nope_head_dim": 14, "qk_rope_head_dim": 8, "v_head_dim": 10}
WIDE = {"q_lora_rank": None, "kv_lora_rank": 264, "qk_nope_head_dim": 18, "qk_rope_head_dim": 8, "v_head_dim": 22}
MIDDLE = {"q_lora_rank": 41, "kv_lora_rank": 24, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12}
DEEPSEEK_EXPERTS = {"n_routed_experts": 12, "num_experts_per_tok": 3, "moe_intermediate_size": 37, "n_group": 4, "topk_group": 2,
                    "n_shared_experts": 2, "routed_scaling_factor": 1.5, "first_k_dense_replace": 1, "num_key_value_heads": 6}
DEEPSEEK_KEYS = {"expert_count": 12, "expert_used_count": 3, "expert_feed_forward_length": 37, "expert_shared_count": 2,
                 "expert_group_count": 4, "expert_group_used_count": 2, "expert_weights_scale": 1.5, "leading_dense_block_count": 1}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 32, "beta_fast": 32.0, "beta_slow": 1.0,
        "mscale": 0.7, "mscale_all_dim": 0.7}
YARN_KEYS = {"rope.scaling.type": "yarn", "rope.scaling.factor": 8.0, "rope.scaling.original_context_length": 32,
             "rope.scaling.yarn_log_multiplier": 0.07}

# The numbers of E2M1 by their nibbles.
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=np.float32)


def bytes_of(name, n, base, count):
    """Bytes of a tensor from `base` on, `count` different ones."""
    return (np.uint64(base) + np.floor((uniform(name, n) + 1) / 2 * count).astype(np.uint64)).astype(np.uint8)


def in_mxfp4(name, shape):
    """Nibbles and scales that a folder has in place of a matrix of all experts, and its values: its rows are columns of the parameter."""
    n_experts, n_columns, n_rows = shape
    shapes = [(f"{name}_blocks", [n_experts, n_rows, n_columns // 32, 16], 0, 256),
              (f"{name}_scales", [n_experts, n_rows, n_columns // 32], 122 if "gate_up" in name else 119, 4)]
    blocks, scales = (bytes_of(stored, int(np.prod(shape)), base, count).reshape(shape) for stored, shape, base, count in shapes)
    nibbles = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*blocks.shape[:3], 32)
    values = E2M1[nibbles] * np.exp2(scales.astype(np.float32) - 127)[..., None]
    tensors = [{"name": stored, "shape": shape, "base": base, "scale": count, "is_bytes": True} for stored, shape, base, count in shapes]
    return tensors, torch.from_numpy(values.reshape(n_experts, n_rows, n_columns)).transpose(1, 2)


def parts_of(case, name, shape):
    """What checkpoints have in place of a parameter: the tensor's name, its shape, and which part of the parameter it is."""
    module, _, parameter = name.rpartition(".")
    is_both = parameter == "gate_up_proj"
    if case["kind"] == "mixtral":
        module = module.replace(".mlp", ".block_sparse_moe")
        name = name.replace(".mlp.", ".block_sparse_moe.")
    if case["kind"] == "granitemoe":
        names = {"experts.gate_up_proj": "input_linear.weight", "experts.down_proj": "output_linear.weight", "router.weight": "router.layer.weight"}
        for of_transformers, stored in names.items():
            name = name.replace(f"block_sparse_moe.{of_transformers}", f"block_sparse_moe.{stored}")
        return [(name, shape, ...)]
    if case["kind"] == "ernie4_5_moe":
        name = name.replace(".mlp.gate.moe_statics.", ".mlp.moe_statics.")
    if not module.endswith(".experts") or case["is_stacked"] or case["kind"] in ["gpt_oss", "llama4", "llama4_text"]:
        return [(name, shape, ...)]
    gate, up, down = ["w1", "w3", "w2"] if case["kind"] in ["mixtral", "lfm2_moe"] else ["gate_proj", "up_proj", "down_proj"]
    n_experts, n_rows, n_columns = shape
    half = n_rows // 2
    rows = [(gate, slice(0, half)), (up, slice(half, n_rows))] if is_both else [(down, slice(0, n_rows))]
    return [(f"{module}.{expert}.{part}.weight", [where.stop - where.start, n_columns], (expert, where))
            for expert in range(n_experts) for part, where in rows]


def stacked_of(case, shapes):
    """Tensors of a GGUF file that have the matrices of all experts of a layer, with what they are made of."""
    n_experts = case["gguf"]["expert_count"]
    for name in shapes:
        module, kind = name.rsplit(".", 1)
        layer = name.split(".")[2] if ".layers." in name else None
        if "experts." in name and case["kind"] == "gpt_oss":
            both = {"gate": ["gate_up_proj", 0, 2], "up": ["gate_up_proj", 1, 2], "down": ["down_proj", 0, 1]}
            for part, (stored, first, step) in both.items():
                for ending, kind in [("_blocks", "weight"), ("_bias", "bias")]:
                    if name.endswith(f"{stored}{ending}"):
                        yield {"name": f"blk.{layer}.ffn_{part}_exps.{kind}", "from": name, "every": [first, step]}
        elif name.endswith("experts.gate_up_proj") and case["kind"] == "gemma4_text":
            yield {"name": f"blk.{layer}.ffn_gate_up_exps.weight", "from": name}
        elif name.endswith("feed_forward.experts.gate_up_proj"):
            for half, part in enumerate(["gate", "up"]):
                yield {"name": f"blk.{layer}.ffn_{part}_exps.weight", "from": name, "experts": n_experts, "turned": True, "half": half}
        elif name.endswith("feed_forward.experts.down_proj"):
            yield {"name": f"blk.{layer}.ffn_down_exps.weight", "from": name, "turned": True}
        elif module.endswith("input_linear") or name.endswith("experts.gate_up_proj"):
            for half, part in enumerate(["gate", "up"]):
                yield {"name": f"blk.{layer}.ffn_{part}_exps.weight", "from": name, "experts": n_experts, "half": half}
        elif module.endswith("output_linear") or name.endswith("experts.down_proj"):
            yield {"name": f"blk.{layer}.ffn_down_exps.weight", "from": name}
        elif ".experts.0." in name:
            part = {"gate_proj": "gate", "w1": "gate", "up_proj": "up", "w3": "up", "down_proj": "down", "w2": "down"}[module.split(".")[-1]]
            yield {"name": f"blk.{layer}.ffn_{part}_exps.{kind}", "from": name.replace(".experts.0.", ".experts.{}."), "experts": n_experts}


CASES = [
    case("llama", "llama", "F32", SMALL | {"rope_theta": 5e5}, {}, is_permuted=True),
    case("llama-yarn", "llama", "F32", SMALL | {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0,
                                                                    "original_max_position_embeddings": 64, "beta_fast": 8.0}},
         {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 64,
          "rope.scaling.yarn_beta_fast": 8.0}, is_permuted=True),
    case("mistral", "mistral", "BF16", SMALL | {"sliding_window": 9, "num_key_value_heads": 1}, {"attention.sliding_window": 9},
         arch="llama", is_permuted=True),
    case("qwen2", "qwen2", "F16", SPLIT | {"hidden_size": 96, "num_attention_heads": 6, "tie_word_embeddings": True}, {}),
    case("qwen2-window", "qwen2", "F32", SPLIT | {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2}),
    case("qwen3", "qwen3", "BF16", SMALL | {"head_dim": 24, "num_attention_heads": 8, "num_key_value_heads": 1}, {}),
    # Saved without its head, as models for embeddings are.
    case("qwen3-embedding", "qwen3", "F16", SMALL | {"head_dim": 24, "num_key_value_heads": 2, "tie_word_embeddings": True},
         {"pooling_type": 3}, lacks="model.", pooling="lasttoken"),
    case("gemma2", "gemma2", "BF16", SMALL | {"head_dim": 24, "sliding_window": 7, "query_pre_attn_scalar": 24,
                                              "attn_logit_softcapping": 3.0, "final_logit_softcapping": 4.0},
         {"attention.sliding_window": 7, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 4.0}, own=GEMMA),
    case("gemma2-scalar", "gemma2", "F32", SMALL | {"query_pre_attn_scalar": 50, "sliding_window": 200}),
    case("gemma3", "gemma3_text", "F32", SMALL | {"num_hidden_layers": 7, "sliding_window": 6, "query_pre_attn_scalar": 20},
         {"attention.sliding_window": 6, "rope.freq_base": 1e6}, arch="gemma3", own=GEMMA),
    case("gemma3-wide", "gemma3_text", "F16", SMALL | {"num_hidden_layers": 2, "head_dim": 256, "num_attention_heads": 4,
                                                       "num_key_value_heads": 1, "hidden_size": 64, "sliding_window": 5,
                                                       "query_pre_attn_scalar": 256,
                                                       "layer_types": ["full_attention", "sliding_attention"],
                                                       "rope_parameters": {
                                                           "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                                                           "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}}),
    # EmbeddingGemma; a window counts the positions on both sides.
    case("embedding_gemma", "gemma3_text", "F32", SMALL | {"num_hidden_layers": 7, "sliding_window": 10, "query_pre_attn_scalar": 20,
                                                           "use_bidirectional_attention": True},
         {"attention.sliding_window": 10, "rope.freq_base": 1e6, "pooling_type": 1, "dense_2_feat_in": 60, "dense_2_feat_out": 102,
          "dense_3_feat_in": 102, "dense_3_feat_out": 60}, arch="gemma-embedding", own=GEMMA, lacks="model.", pooling="mean",
         dense=[[102, 60], [60, 102]]),
    case("gemma4", "gemma4_text", "F32", SMALL | GEMMA4 | {"global_head_dim": 36, "num_global_key_value_heads": 2, "attention_k_eq_v": True},
         GEMMA4_KEYS | {"attention.head_count_kv": [3, 3, 2, 3, 2]}, arch="gemma4", own=GEMMA),
    # As transformers writes the heads, and as published configs have them.
    case("gemma4-wide", "gemma4_text", "BF16", SMALL | GEMMA4 | {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 256,
                                                                 "global_head_dim": 512, "final_logit_softcapping": None}),
    case("gemma4-small", "gemma4_text", "F32", SMALL | GEMMA4_SHARING | {"global_head_dim": 36, "num_key_value_heads": 2},
         GEMMA4_KEYS | {"attention.sliding_window_pattern": [True, True, False, True, True, False, False], "attention.shared_kv_layers": 3,
                        "embedding_length_per_layer_input": 12, "feed_forward_length": [99, 99, 99, 99, 198, 198, 198]},
         arch="gemma4", own=GEMMA4_SMALL),
    case("gemma4-small-narrow", "gemma4_text", "BF16", SMALL | GEMMA4_SHARING | {
        "global_head_dim": 24, "num_attention_heads": 4, "num_key_value_heads": 1, "use_double_wide_mlp": False,
        "hidden_size_per_layer_input": 20, "num_kv_shared_layers": 4}),
    case("gemma4_moe", "gemma4_text", "F32", SMALL | GEMMA4 | {
        "enable_moe_block": True, "num_experts": 7, "top_k_experts": 3, "moe_intermediate_size": 37, "global_head_dim": 36},
         EXPERT_KEYS | GEMMA4_KEYS | {"expert_feed_forward_length": 37}, arch="gemma4", own=GEMMA4_MOE, is_stacked=True),
    case("phi3", "phi3", "F16", SPLIT | {"hidden_size": 120, "num_key_value_heads": 2}, {}, own=PHI3),
    case("phi3-partial", "phi3", "F32", SPLIT | {"hidden_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2,
                                                 "tie_word_embeddings": True, "sliding_window": 11,
                                                 "rope_parameters": {"rope_type": "default", "rope_theta": 1e4,
                                                                     "partial_rotary_factor": 0.5}},
         {"rope.dimension_count": 12, "attention.sliding_window": 11}, own=PHI3),
    case("phi3-longrope", "phi3", "F32", SPLIT | LONGROPE, {}, own=PHI3),
    case("phi3-longrope-far", "phi3", "BF16", SPLIT | LONGROPE | {"original_max_position_embeddings": 32}, {}, own=PHI3, lengths=[33, 40]),
    case("olmo2", "olmo2", "BF16", SPLIT | {"num_key_value_heads": 6}, {}, own=AFTER),
    case("olmo2-grouped", "olmo2", "F32", SPLIT | {"hidden_size": 128, "num_attention_heads": 8, "num_key_value_heads": 2,
                                                   "tie_word_embeddings": True}),
    case("smollm3", "smollm3", "F32", SPLIT | {"num_hidden_layers": 5, "tie_word_embeddings": True}, {}, is_permuted=True),
    case("smollm3-untied", "smollm3", "F16", SPLIT | {"hidden_size": 80, "num_attention_heads": 5, "num_key_value_heads": 1,
                                                      "tie_word_embeddings": False, "no_rope_layers": [0, 1, 1, 0]}),
    case("granite", "granite", "BF16", SPLIT | {"hidden_size": 96, "num_attention_heads": 6, "embedding_multiplier": 1.5,
                                                "residual_multiplier": 0.6, "attention_multiplier": 0.4, "logits_scaling": 3.0,
                                                "tie_word_embeddings": True},
         {"embedding_scale": 1.5, "residual_scale": 0.6, "attention.scale": 0.4, "logit_scale": 3.0}, is_permuted=True),
    case("gpt2", "gpt2", "F16", {"vocab_size": 261, "n_embd": 60, "n_inner": 99, "n_layer": 3, "n_head": 3, "n_positions": 64}, {},
         own=GPT2),
    case("gpt2-bare", "gpt2", "F32", {"vocab_size": 257, "n_embd": 96, "n_layer": 2, "n_head": 4, "n_positions": 48,
                                      "activation_function": "gelu", "scale_attn_weights": False}, lacks="transformer."),
    case("starcoder2", "starcoder2", "BF16", SPLIT | {"num_key_value_heads": 2}, {}, own=STARCODER2),
    case("starcoder2-window", "starcoder2", "F32", SPLIT | {"hidden_size": 72, "sliding_window": 7, "use_bias": False,
                                                            "tie_word_embeddings": False}),
    case("stablelm", "stablelm", "F16", SPLIT | {"hidden_size": 96, "num_attention_heads": 3, "use_qkv_bias": True},
         {"rope.dimension_count": 8}),
    case("nemotron", "nemotron", "F32", SPLIT | {"hidden_size": 72, "num_attention_heads": 6, "num_key_value_heads": 2},
         {"rope.dimension_count": 6}),
    case("nemotron-biases", "nemotron", "F16", SMALL | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    case("olmo3", "olmo3", "F32", SPLIT | {"num_hidden_layers": 5, "sliding_window": 6},
         {"attention.sliding_window": 6, "rope.freq_base": 5e5}, arch="olmo2", own=AFTER),
    case("exaone4", "exaone4", "BF16", SPLIT | {"sliding_window": None, "layer_types": ["full_attention"] * 4}, {}, own=AFTER),
    case("exaone4-window", "exaone4", "F32", SMALL | {"num_hidden_layers": 5, "sliding_window": 6},
         {"attention.sliding_window": 6}, own=AFTER),
    case("glm4", "glm4", "F16", SMALL | {"head_dim": 24, "num_key_value_heads": 2}, {"rope.dimension_count": 12}, own=GLM4),
    case("ernie4_5", "ernie4_5", "BF16", SMALL, {"rope.freq_base": 5e5}),
    case("ernie4_5-biases", "ernie4_5", "F32", SMALL | {"use_bias": True, "tie_word_embeddings": False}),
    case("seed_oss", "seed_oss", "F16", SMALL, {}, own=SEED_OSS),
    case("internlm3", "internlm3", "F32", SMALL | {"attention_bias": True, "mlp_bias": True,
                                                "rope_parameters": {"rope_type": "dynamic", "rope_theta": 5e4, "factor": 6.0}},
         {}, arch="llama", is_permuted=True),
    case("phi", "phi", "F16", SPLIT | {"hidden_size": 72, "num_attention_heads": 3, "partial_rotary_factor": 0.5},
         {"rope.dimension_count": 12}, arch="phi2", own=PHI),
    case("gpt_neox", "gpt_neox", "BF16", NEOX_SHAPE | {"use_parallel_residual": True},
         {"rope.dimension_count": 8, "use_parallel_residual": True}, arch="gptneox", own=NEOX),
    case("gpt_neox-serial", "gpt_neox", "F32", NEOX_SHAPE | {"use_parallel_residual": False, "attention_bias": False},
         {"rope.dimension_count": 8, "use_parallel_residual": False}, arch="gptneox", own=NEOX),
    case("cohere", "cohere", "F32", SPLIT | {"logit_scale": 0.5}, {"logit_scale": 0.5, "rope.freq_base": 5e5}, arch="command-r"),
    case("arcee", "arcee", "BF16", SMALL, {}, is_permuted=True),
    # The feed-forward part is as wide as the config says, multiplied and rounded up to 24.
    case("lfm2", "lfm2", "BF16", SPLIT | {"num_hidden_layers": 5, "intermediate_size": 150, "block_multiple_of": 24, "block_ffn_dim_multiplier": 1.1,
                                          "layer_types": ["conv", "conv", "full_attention", "conv", "full_attention"]},
         {"attention.head_count_kv": [0, 0, 3, 0, 3], "feed_forward_length": 120, "shortconv.l_cache": 3}, own=LFM2),
    case("lfm2-biases", "lfm2", "F32", SPLIT | {"hidden_size": 80, "num_attention_heads": 5, "num_key_value_heads": 1, "conv_bias": True,
                                                "conv_L_cache": 5, "block_auto_adjust_ff_dim": False, "tie_word_embeddings": False,
                                                "full_attn_idxs": [1]},
         {"attention.head_count_kv": [0, 1, 0, 0], "shortconv.l_cache": 5}, own=LFM2),
    case("mixtral", "mixtral", "F16", SMALL | {"num_local_experts": 7, "num_experts_per_tok": 3, "intermediate_size": 41, "rope_theta": 1e6},
         EXPERT_KEYS, arch="llama", own=MIXTRAL, is_permuted=True),
    case("qwen3_moe", "qwen3_moe", "BF16", SMALL | EXPERTS | {"head_dim": 24, "norm_topk_prob": True},
         EXPERT_KEYS | {"expert_feed_forward_length": 37}, arch="qwen3moe"),
    case("qwen3_moe-some-layers", "qwen3_moe", "F32", SMALL | EXPERTS | {"num_hidden_layers": 5, "decoder_sparse_step": 2,
                                                                        "mlp_only_layers": [3], "num_experts_per_tok": 1}, is_stacked=True),
    case("olmoe", "olmoe", "F32", SPLIT | {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts": 7,
                                           "num_experts_per_tok": 3, "intermediate_size": 33}, EXPERT_KEYS),
    case("qwen2_moe", "qwen2_moe", "F16", SPLIT | EXPERTS | SHARED_EXPERT | {"hidden_size": 96},
         EXPERT_KEYS | SHARED_EXPERT_KEYS, arch="qwen2moe"),
    case("granitemoe", "granitemoe", "BF16", SPLIT | {"hidden_size": 96, "num_local_experts": 7, "num_experts_per_tok": 3, "intermediate_size": 34,
                                                      "embedding_multiplier": 1.5, "residual_multiplier": 0.6, "attention_multiplier": 0.4,
                                                      "logits_scaling": 3.0, "tie_word_embeddings": True},
         EXPERT_KEYS | {"embedding_scale": 1.5, "residual_scale": 0.6, "attention.scale": 0.4, "logit_scale": 3.0}, own=GRANITE_MOE,
         is_permuted=True),
    case("glm4_moe", "glm4_moe", "BF16", SMALL | {"n_routed_experts": 12, "num_experts_per_tok": 3, "moe_intermediate_size": 37, "n_group": 4,
                                                  "topk_group": 2, "n_shared_experts": 2, "routed_scaling_factor": 1.5, "head_dim": 16,
                                                  "use_qk_norm": True, "attention_bias": True},
         {"expert_count": 12, "expert_used_count": 3, "expert_feed_forward_length": 37, "expert_shared_count": 2, "expert_group_count": 4,
          "expert_group_used_count": 2, "expert_weights_scale": 1.5, "expert_weights_norm": True, "leading_dense_block_count": 1,
          "rope.dimension_count": 8}, arch="glm4moe", own=GLM4_MOE),
    case("ernie4_5_moe", "ernie4_5_moe", "F32", SPLIT | {"moe_num_experts": 7, "moe_k": 3, "moe_intermediate_size": 37, "num_hidden_layers": 5,
                                                         "moe_layer_interval": 2, "moe_num_shared_experts": 1},
         EXPERT_KEYS | {"expert_feed_forward_length": 37, "expert_shared_count": 1, "interleave_moe_layer_step": 2,
                        "leading_dense_block_count": 1, "rope.freq_base": 5e5}, arch="ernie4_5-moe", own=SHARED),
    case("qwen3_5", "qwen3_5_text", "F32", SMALL | DELTA | {"num_hidden_layers": 5, "head_dim": 32},
         DELTA_KEYS | {"rope.dimension_count": 8}, arch="qwen35", own=QWEN3_5),
    case("qwen3_5-biases", "qwen3_5_text", "BF16", SMALL | DELTA | {
        "head_dim": 16, "num_key_value_heads": 1, "attention_bias": True, "tie_word_embeddings": True, "linear_num_value_heads": 2,
        "linear_value_head_dim": 33, "linear_conv_kernel_dim": 3, "layer_types": ["full_attention", *["linear_attention"] * 3],
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]}}),
    # Files count the layers that predict further tokens, which do not run.
    case("qwen3_5_moe", "qwen3_5_moe_text", "BF16", SMALL | DELTA | EXPERTS | SHARED_EXPERT | {"num_hidden_layers": 5, "head_dim": 32},
         EXPERT_KEYS | SHARED_EXPERT_KEYS | DELTA_KEYS | {"rope.dimension_count": 8, "block_count": 6, "nextn_predict_layers": 1},
         arch="qwen35moe", own=QWEN3_5, is_stacked=True),
    case("qwen3_next", "qwen3_next", "F32", SMALL | DELTA | EXPERTS | SHARED_EXPERT | {"num_hidden_layers": 5, "head_dim": 32},
         EXPERT_KEYS | SHARED_EXPERT_KEYS | DELTA_KEYS | {"rope.dimension_count": 8}, arch="qwen3next", own=QWEN3_NEXT),
    case("qwen3_next-some-layers", "qwen3_next", "F16", SMALL | DELTA | EXPERTS | SHARED_EXPERT | {
        "head_dim": 16, "num_key_value_heads": 1, "linear_num_key_heads": 3, "linear_num_value_heads": 3, "linear_value_head_dim": 33,
        "linear_conv_kernel_dim": 3, "decoder_sparse_step": 2, "mlp_only_layers": [3], "norm_topk_prob": False, "attention_bias": True,
        "layer_types": ["full_attention", "linear_attention", "full_attention", "linear_attention"]}, lengths=[1, 5, 17]),
    # Models that see, of which the text model is used.
    case("qwen3_5_moe-vision", "qwen3_5_moe", "F32", {
        "text_config": SMALL | DELTA | EXPERTS | SHARED_EXPERT | {"head_dim": 32, "tie_word_embeddings": True, **NO_TOKENS},
        "tie_word_embeddings": True,
        "vision_config": {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 60,
                          "num_position_embeddings": 16}}),
    case("qwen3_5-vision", "qwen3_5", "F32", {"text_config": SMALL | DELTA | {"num_hidden_layers": 4, "head_dim": 32, **NO_TOKENS},
                                              "vision_config": {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2,
                                                                "out_hidden_size": 60, "num_position_embeddings": 16}}),
    case("gemma3-vision", "gemma3", "F16", {"text_config": SMALL | {"num_hidden_layers": 2, "sliding_window": 6, "query_pre_attn_scalar": 20, **NO_TOKENS},
                                            "vision_config": {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16,
                                                              "num_attention_heads": 2, "image_size": 16, "patch_size": 8},
                                            "mm_tokens_per_image": 4}),
    # Of scales of MXFP4 some are so large that gates are clamped.
    case("gpt_oss", "gpt_oss", "BF16", {"vocab_size": 261, "hidden_size": 96, "intermediate_size": 64, "num_hidden_layers": 4,
                                        "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 20, "max_position_embeddings": 256,
                                        "num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": 7,
                                        "rope_parameters": {"rope_type": "yarn", "rope_theta": 1.5e5, "factor": 8.0, "beta_fast": 32.0,
                                                            "beta_slow": 1.0, "truncate": False, "original_max_position_embeddings": 32}},
         {"expert_count": 5, "expert_used_count": 2, "expert_feed_forward_length": 64, "attention.sliding_window": 7,
          "rope.scaling.type": "yarn", "rope.scaling.factor": 8.0, "rope.scaling.original_context_length": 32}, arch="gpt-oss",
         own=GPT_OSS | {"self_attn": "attn_sinks"}),
    case("dots1", "dots1", "F32", SMALL | {"n_routed_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 37, "n_shared_experts": 1,
                                          "first_k_dense_replace": 2, "norm_topk_prob": True, "sliding_window": None},
         EXPERT_KEYS | {"expert_feed_forward_length": 37, "expert_shared_count": 1, "expert_weights_norm": True,
                        "leading_dense_block_count": 2}, own=SHARED),
    case("deepseek_v3", "deepseek_v3", "F32", SPLIT | NARROW | DEEPSEEK_EXPERTS,
         DEEPSEEK_KEYS | latent_keys(NARROW) | {"expert_gating_func": 2, "expert_weights_norm": True}, arch="deepseek2", own=DEEPSEEK),
    case("deepseek_v3-wide", "deepseek_v3", "BF16", SPLIT | WIDE | DEEPSEEK_EXPERTS | {"norm_topk_prob": False, "rope_parameters": YARN},
         DEEPSEEK_KEYS | latent_keys(WIDE) | YARN_KEYS | {"expert_gating_func": 2}, arch="deepseek2", own=DEEPSEEK),
    case("deepseek_v3-halves", "deepseek_v3", "F16", SPLIT | MIDDLE | DEEPSEEK_EXPERTS | {"rope_interleave": False, "attention_bias": True,
                                                                                         "n_group": 1, "topk_group": 1}),
    case("deepseek_v2", "deepseek_v2", "F16", SPLIT | MIDDLE | DEEPSEEK_EXPERTS | {"topk_method": "group_limited_greedy",
                                                                                  "rope_parameters": YARN},
         DEEPSEEK_KEYS | latent_keys(MIDDLE) | YARN_KEYS, arch="deepseek2", own=DEEPSEEK),
    case("deepseek_v2-greedy", "deepseek_v2", "F32", SPLIT | WIDE | DEEPSEEK_EXPERTS | {"topk_method": "greedy", "n_group": None,
                                                                                       "first_k_dense_replace": 2},
         DEEPSEEK_KEYS | former_latent_keys(WIDE) | {"expert_group_count": 1, "expert_group_used_count": 1, "leading_dense_block_count": 2},
         arch="deepseek2", own=DEEPSEEK),
    case("llama4", "llama4_text", "BF16", SMALL | {"num_hidden_layers": 5, "intermediate_size": 37, "intermediate_size_mlp": 99,
                                                   "num_local_experts": 5, "interleave_moe_layer_step": 2, "rope_theta": 5e5},
         {"expert_count": 5, "expert_used_count": 1, "expert_feed_forward_length": 37, "interleave_moe_layer_step": 2,
          "feed_forward_length": 99, "rope.freq_base": 5e5}, arch="llama4", own=LLAMA4),
    case("llama4-chunks", "llama4_text", "F32", SMALL | {"head_dim": 24, "intermediate_size": 37, "intermediate_size_mlp": 51,
                                                         "num_local_experts": 5, "num_experts_per_tok": 2, "moe_layers": [0, 3],
                                                         "no_rope_layers": [1, 0, 1, 1], "attention_chunk_size": 7, "floor_scale": 5,
                                                         "attn_scale": 0.3, "attention_bias": True}),
    case("llama4-vision", "llama4", "F16", {"text_config": SMALL | {
        "num_hidden_layers": 4, "intermediate_size": 37, "intermediate_size_mlp": 51, "num_local_experts": 3, "use_qk_norm": False,
        "attn_temperature_tuning": False, "attention_chunk_size": 9, "no_rope_layers": [], **NO_TOKENS},
        "vision_config": {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 64, "num_attention_heads": 2, "image_size": 16,
                          "patch_size": 8, "vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16}}),
    case("lfm2_moe", "lfm2_moe", "F16", SPLIT | EXPERTS | {"num_dense_layers": 1, "routed_scaling_factor": 1.5,
                                                          "layer_types": ["conv", "full_attention", "conv", "full_attention"]},
         EXPERT_KEYS | {"attention.head_count_kv": [0, 3, 0, 3], "shortconv.l_cache": 3, "expert_feed_forward_length": 37,
                        "expert_weights_scale": 1.5, "leading_dense_block_count": 1}, arch="lfm2moe",
         own=LFM2 | {"feed_forward.gate": "ffn_gate_inp", "feed_forward": "exp_probs_b"}),
    case("bert", "bert", "F32", BERT_SHAPE, {"attention.causal": False}, own=BERT),
    case("bert-one-kind", "bert", "F16", BERT_SHAPE | {"hidden_size": 64, "num_attention_heads": 4, "type_vocab_size": 1,
                                                     "hidden_act": "gelu_new"}),
    case("nomic_bert", "nomic_bert", "F32", BERT_SHAPE | {"head_dim": 20},
         {"attention.causal": False, "rope.freq_base": 1000.0}, arch="nomic-bert", own=NOMIC),
]


def is_offset(case):
    """Whether weights of norms are stored as what is added to 1."""
    return any(kind in case["kind"] for kind in ["gemma2", "gemma3", "nemotron", "qwen3_5", "qwen3_next"])


def tiled(case, config, name, shape):
    """Of which rows, and of which columns, a converter makes those of a tensor, where it puts value heads that share a key head apart."""
    if case["kind"] not in ["qwen3_5_text", "qwen3_5_moe_text"] or "linear_attn" not in name or "linear_attn.norm" in name:
        return {}
    n_key_heads, n_value_heads = config.linear_num_key_heads, config.linear_num_value_heads
    n_shared, axis = n_value_heads // n_key_heads, 1 if "out_proj" in name else 0
    values = config.linear_value_head_dim * n_value_heads
    n_before = shape[axis] - values if shape[axis] > n_value_heads else 0
    size = (shape[axis] - n_before) // n_value_heads
    heads = [head % n_key_heads * n_shared + head // n_key_heads for head in range(n_value_heads)]
    order = list(range(n_before)) + [n_before + head * size + i for head in heads for i in range(size)]
    return {"columns" if axis else "rows": order}


def parts_of_heads(config, name):
    """Tensors of a GGUF file that a matrix of Qwen3-Next becomes, in which the rows of queries, keys, values and gates lie head by head."""
    n_heads, key_size = config.linear_num_key_heads, config.linear_key_head_dim
    value_size = config.linear_num_value_heads // n_heads * config.linear_value_head_dim
    ends = np.cumsum([0, key_size, key_size, value_size, value_size])
    rows = [[head * int(ends[-1]) + row for head in range(n_heads) for row in range(ends[part], ends[part + 1])] for part in range(4)]
    layer = name.split(".")[2]
    for part, of_part in [("attn_qkv", rows[0] + rows[1] + rows[2]), ("attn_gate", rows[3])]:
        yield {"name": f"blk.{layer}.{part}.weight", "from": name, "add": 0.0, "rows": [int(row) for row in of_part]}


def latent_parts(config, name):
    """The matrices of keys, transposed, and of values that a converter makes of that of both, head by head."""
    still, n_values, n_heads = config.qk_nope_head_dim, config.v_head_dim, config.num_attention_heads
    layer = name.split(".")[2]
    begins = [head * (still + n_values) for head in range(n_heads)]
    keys = [begin + row for begin in begins for row in range(still)]
    values = [begin + still + row for begin in begins for row in range(n_values)]
    part = {"from": name, "add": 0.0, "heads": n_heads}
    return [part | {"name": f"blk.{layer}.attn_k_b.weight", "rows": keys, "transposed": True},
            part | {"name": f"blk.{layer}.attn_v_b.weight", "rows": values}]


def gguf_of(case, config, shapes):
    """Keys, and tensors with what they are made of."""
    # Of heads that differ from layer to layer, those of layers with a window.
    config.allow_global_per_layer_attribute_access = True
    keys = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "attention.head_count": config.num_attention_heads,
    }
    if ffn_size := getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None):
        keys["feed_forward_length"] = ffn_size
    if case["kind"] in ["gpt2", *ENCODERS]:
        keys["attention.layer_norm_epsilon"] = config.layer_norm_epsilon if case["kind"] == "gpt2" else config.layer_norm_eps
    else:
        head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        rms, layer = "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"
        epsilons = {"rms_norm_eps": rms, "norm_epsilon": layer, "layer_norm_eps": layer,
                    "norm_eps": rms if case["kind"] == "lfm2" else layer}
        keys |= {
            "attention.head_count_kv": getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
            "attention.key_length": head_size,
            "attention.value_length": head_size,
            "rope.dimension_count": head_size,
            "rope.freq_base": (config.rope_parameters or {}).get("rope_theta", 10_000.0),
        } | {gguf: getattr(config, name) for name, gguf in epsilons.items() if hasattr(config, name)}
    vectors = []
    if (getattr(config, "rope_parameters", None) or {}).get("rope_type") == "longrope":
        rope, original = config.rope_parameters, config.original_max_position_embeddings
        factor = config.max_position_embeddings / original
        keys |= {"rope.scaling.attn_factor": float(np.sqrt(1 + np.log(factor) / np.log(original))),
                 "rope.scaling.original_context_length": original}
        vectors = [{"name": f"rope_factors_{kind}.weight", "values": rope[f"{kind}_factor"]} for kind in ["long", "short"]]
    if case["kind"] == "gemma4_text":
        n_pairs = case["gguf"]["attention.key_length"] // 2
        n_turning = int(config.rope_parameters["full_attention"]["partial_rotary_factor"] * n_pairs)
        vectors = [{"name": "rope_freqs.weight", "values": [1.0] * n_turning + [1e30] * (n_pairs - n_turning)}]
    keys |= case["gguf"]
    names = COMMON | case["own"]
    tensors = []
    if "expert_count" in case["gguf"]:
        stacked = list(stacked_of(case, shapes))
        tensors = [{"permuted_heads": None, "add": 0.0} | tensor for tensor in stacked]
        shapes = {name: shape for name, shape in shapes.items() if not any(part in name for part in [".experts.", "put_linear."])}
    for name in shapes:
        if "in_proj_qkvz" in name:
            tensors += parts_of_heads(config, name)
            continue
        module, kind = name.rsplit(".", 1)
        bare = next((gguf for end, gguf in BARE.items() if name.endswith(end)), None)
        if bare:
            tensors.append({"name": f"blk.{name.split('.')[2]}.{bare}", "from": name, "add": 0.0, "negated_exp": bare == "ssm_a"}
                           | tiled(case, config, name, shapes[name]))
            continue
        if name.endswith("kv_b_proj.weight") and "attention.key_length_mla" in case["gguf"]:
            tensors += latent_parts(config, name)
            continue
        if module in OUTER:
            gguf = OUTER[module]
        else:
            _, _, layer, part = module.split(".", 3)
            if kind == "sinks":
                part, kind = "self_attn", "weight"
            is_selection = kind in ["e_score_correction_bias", "expert_bias"]
            gguf = f"blk.{layer}.{'exp_probs_b' if is_selection else names[part]}"
            kind = "bias" if is_selection else kind
        permute = None
        if case["is_permuted"] and "q_proj" in name:
            permute = config.num_attention_heads
        if case["is_permuted"] and "k_proj" in name:
            permute = config.num_key_value_heads
        add = 1.0 if is_offset(case) and name.endswith("norm.weight") and "linear_attn" not in name else 0.0
        tensors.append({"name": f"{gguf}.{kind}", "from": name, "permuted_heads": permute, "add": add}
                       | ({"transposed": True} if is_transposed(case, name) else {})
                       | tiled(case, config, name, shapes[name])
                       | ({"heads_of_parts": config.num_attention_heads} if "query_key_value" in name else {}))
    tensors += [{"name": tensor["name"], "from": tensor["name"], "add": 0.0} for tensor, _ in dense_of(case)]
    return {"architecture": case["arch"], "keys": keys, "tensors": tensors} | ({"vectors": vectors} if vectors else {})


# What attention gives is off by so much of it, about as a cache of halves makes it; logits may be off by so much of the largest then.
NOISE, TAME = 1e-3, 0.006


def prompt_of(case, model, config, length):
    """A prompt; of a mixture of experts one of which no rounding makes a token choose other experts, which changes logits by more."""
    for salt in range(200):
        prompt = [(i * 37 + length + salt * 11) % config.get_text_config().vocab_size for i in range(length)]
        if not any("experts." in name for name, _ in model.named_parameters()) or is_tame(model, prompt):
            return prompt
    raise ValueError(f"{case['name']}: every prompt of {length} has a token between two experts")


def is_tame(model, prompt):
    def with_noise(module, inputs, output):
        return (output[0] * (1 + NOISE * torch.randn_like(output[0])), *output[1:])

    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(N_GREEDY - 1):
            tokens.append(int(model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
        logits = model(torch.tensor([tokens]), use_cache=False).logits[0]
        torch.manual_seed(0)
        hooks = [layer.self_attn.register_forward_hook(with_noise) for layer in getattr(model.model, "language_model", model.model).layers if hasattr(layer, "self_attn")]
        noisy = [model(torch.tensor([tokens]), use_cache=False).logits[0] for _ in range(6)]
    for hook in hooks:
        hook.remove()
    return all(float((each - logits).abs().max()) < TAME * float(logits.abs().max()) for each in noisy)


def parameters_of(case, model):
    """The parameters of a model by the names that folders have for them."""
    parameters = dict(model.named_parameters())
    if case["kind"] != "nomic_bert":
        return list(parameters.items())
    # Transformers renames those of this family as it reads them: `nomic_bert` in its conversion_mapping.py.
    renamed = {"layers.": "encoder.layers.", "embeddings.LayerNorm": "emb_ln", "self_attn.o_proj": "attn.out_proj", "mlp.up_proj": "mlp.fc11",
               "mlp.gate_proj": "mlp.fc12", "mlp.down_proj": "mlp.fc2", "post_attention_layernorm": "norm1", "post_mlp_layernorm": "norm2"}
    found = {}
    for name, parameter in parameters.items():
        for one, other in renamed.items():
            name = name.replace(one, other)
        if "self_attn" not in name:
            found[name] = parameter
        elif "q_proj" in name:
            whole = torch.empty(3 * parameter.shape[0], parameter.shape[1])
            found[name.replace("self_attn.q_proj", "attn.Wqkv")] = whole
            for part, own in enumerate(["q_proj", "k_proj", "v_proj"]):
                index = name.split(".")[2]
                parameters[f"layers.{index}.self_attn.{own}.weight"].data = whole[part * parameter.shape[0]:(part + 1) * parameter.shape[0]]
    return list(found.items())


def dense_of(case):
    """Linear layers behind the pooling, as tensors of files and as matrices."""
    for number, shape in enumerate(case["dense"], 2):
        name = f"dense_{number}.weight"
        base, scale = spread(name, shape, False, False)
        values = np.float32(base) + np.float32(scale) * uniform(name, int(np.prod(shape)))
        matrix = torch.from_numpy(values).view(shape).to(DTYPES[case["dtype"]]).float()
        yield {"name": name, "shape": shape, "base": base, "scale": scale}, matrix


def embedding_of(case, states):
    embedding = states[-1] if case["pooling"] == "lasttoken" else states.mean(dim=0)
    for _, matrix in dense_of(case):
        embedding = matrix @ embedding
    return torch.nn.functional.normalize(embedding, dim=0)


def loaded(case):
    """Config and model of a case with its weights; the shapes of its tensors by their names, and what the tests make them of."""
    pad = 0 if case["kind"] == "nomic_bert" else None
    config = AutoConfig.for_model(case["kind"], bos_token_id=None, eos_token_id=None, pad_token_id=pad, **case["config"])
    config._attn_implementation = config._experts_implementation = "eager"
    if case["kind"] in ENCODERS:
        model = AutoModel.from_config(config, add_pooling_layer=False)
    else:
        model = (AutoModelForImageTextToText if hasattr(config, "text_config") else AutoModelForCausalLM).from_config(config)
    model = model.float().eval()
    shapes, tensors = {}, []
    with torch.no_grad():
        biases = [(name, buffer) for name, buffer in model.named_buffers() if name.endswith(("e_score_correction_bias", "expert_bias", "layer_scalar"))]
        for name, parameter in [*parameters_of(case, model), *biases]:
            if case["kind"] == "gpt_oss" and name.endswith(("gate_up_proj", "down_proj")):
                packed, values = in_mxfp4(name, list(parameter.shape))
                parameter.copy_(values)
                shapes |= {tensor["name"]: tensor["shape"] for tensor in packed}
                tensors += packed
                continue
            for name, shape, part in parts_of(case, name, list(parameter.shape)):
                base, scale = spread(name, shape, is_offset(case), is_transposed(case, name))
                if case["kind"] == "gemma4_text" and name.endswith(("q_norm.weight", "k_norm.weight")):
                    # These weights stand in place of a scale of the scores.
                    base, scale = 0.4, 0.1
                values = np.float32(base) + np.float32(scale) * uniform(name, int(np.prod(shape)))
                parameter[part] = torch.from_numpy(values).view(shape).to(DTYPES[case["dtype"]]).float()
                shapes[name] = shape
                tensors.append({"name": name, "shape": shape, "base": base, "scale": scale})
    return config, model, shapes, tensors


def answer(case):
    config, model, shapes, tensors = loaded(case)
    sees_both_sides = bool(case["config"].get("use_bidirectional_attention"))
    is_encoder = case["kind"] in ENCODERS or sees_both_sides
    tied = config.tie_word_embeddings
    assert is_encoder or tied != any(name.endswith("lm_head.weight") for name in shapes), case["name"]
    cases = []
    # As transformers has it, the whole of Llama 4 asks for a picture; its text model is a whole one itself.
    text = model.language_model if case["kind"] == "llama4" else model
    for length in case["lengths"]:
        prompt = prompt_of(case, text, config, length)
        tokens, last_logits, margins = list(prompt), None, []
        if is_encoder:
            with torch.no_grad():
                states = (model.model if sees_both_sides else model)(torch.tensor([prompt])).last_hidden_state[0].float()
            cases.append({"prompt": prompt, "last_logits": [float(f"{x:.6g}") for x in states[-1].tolist()], "greedy": []})
            continue
        for _ in range(N_GREEDY):
            with torch.no_grad():
                logits = text(torch.tensor([tokens]), use_cache=False).logits[0, -1].float()
            best = torch.topk(logits, 2).values
            margins.append(float(best[0] - best[1]))
            last_logits = logits if last_logits is None else last_logits
            tokens.append(int(logits.argmax()))
        print(f"  {length}: margin {min(margins):.4f}, largest {float(last_logits.abs().max()):.3f}, greedy {tokens[length:]}")
        # Tokens are compared as far as no rounding can change one.
        sure = next((i for i, margin in enumerate(margins) if margin < 0.02 * float(last_logits.abs().max())), N_GREEDY)
        cases.append({"prompt": prompt, "last_logits": [float(f"{x:.6g}") for x in last_logits.tolist()],
                      "greedy": tokens[length:length + sure]})
    for one in cases if case["pooling"] else []:
        with torch.no_grad():
            embedding = embedding_of(case, model.model(torch.tensor([one["prompt"]])).last_hidden_state[0].float())
        one["embedding"] = [float(f"{x:.6g}") for x in embedding.tolist()]
    written = config.to_dict()
    written = {key: value for key, value in written.items() if not key.startswith("_") and key not in ("transformers_version", "dtype")}
    if case["name"] == "gemma4-wide":
        del written["per_layer_config"]
        written |= {"global_head_dim": 512, "num_global_key_value_heads": None}
    written["architectures"] = [type(model.model if sees_both_sides else model).__name__]
    gguf = None if case["gguf"] is None else gguf_of(case, config, shapes)
    return {"transformers": transformers.__version__, "dtype": case["dtype"], "config": written, "tensors": tensors, "gguf": gguf,
            "cases": cases} | ({"lacks": case["lacks"]} if case["lacks"] else {}) | (
                {"pooling": case["pooling"], "dense": [tensor for tensor, _ in dense_of(case)]} if case["pooling"] else {})


def main():
    FOLDER.mkdir(exist_ok=True)
    # Names of cases on the command line, or all.
    for one in (one for one in CASES if not sys.argv[1:] or one["name"] in sys.argv[1:]):
        print(one["name"])
        text = json.dumps(answer(one), separators=(",", ":"))
        (FOLDER / f"{one['name']}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
