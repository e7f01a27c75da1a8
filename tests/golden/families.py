"""Answers of small models of every family by transformers, for tests/models.rs: `python tests/golden/families.py`.

Writes tests/golden/families/NAME.json. Needs torch and transformers; the tests need neither: they make the same weights from the same
hash, store them as a folder and as a GGUF file, and compare.

Weights: value i of a tensor is base + scale * u, where u in [-1, 1) comes from a hash of the tensor's name and i (`uniform`), all in
f32, then rounded to the dtype of the file. Transformers computes with them in f32.

A GGUF file is laid out as llama.cpp's converter lays it out: its names, rows of queries and keys permuted where the family has it so,
1 added to the norms of Gemma, vectors in f32.
"""

import json
import pathlib

import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

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


def spread(name, shape, gemma):
    """Base and scale of a tensor's values."""
    if len(shape) == 1:
        if name.endswith("bias"):
            return 0.0, 0.25
        return (0.0, 0.25) if gemma else (1.0, 0.25)
    # Queries and keys are large enough that attention looks at some positions more than at others.
    is_query_key = any(part in name for part in ["q_proj", "k_proj", "qkv_proj"])
    return 0.0, float(np.float32((2.0 if is_query_key else 1.4) / np.sqrt(shape[1])))


def permuted(n_heads):
    return {"permute": n_heads}


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
}
AFTER = {"post_attention_layernorm": "post_attention_norm", "post_feedforward_layernorm": "post_ffw_norm"}
GEMMA = AFTER | {"pre_feedforward_layernorm": "ffn_norm"}
PHI3 = {"self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up"}
OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}

SMALL = {"vocab_size": 261, "hidden_size": 60, "intermediate_size": 99, "num_hidden_layers": 4, "num_attention_heads": 6,
         "num_key_value_heads": 3, "head_dim": 20, "max_position_embeddings": 256}
# Of what has no `head_dim`.
SPLIT = {key: value for key, value in SMALL.items() if key != "head_dim"}


def case(name, kind, dtype, config, gguf=None, arch=None, own=None, is_permuted=False):
    return {"name": name, "kind": kind, "dtype": dtype, "config": config, "gguf": gguf, "arch": arch or kind, "own": own or {},
            "is_permuted": is_permuted}


CASES = [
    case("llama", "llama", "F32", SMALL | {"rope_theta": 5e5}, {}, is_permuted=True),
    case("mistral", "mistral", "BF16", SMALL | {"sliding_window": 9, "num_key_value_heads": 1}, {"attention.sliding_window": 9},
         arch="llama", is_permuted=True),
    case("qwen2", "qwen2", "F16", SPLIT | {"hidden_size": 96, "num_attention_heads": 6, "tie_word_embeddings": True}, {}),
    case("qwen2-window", "qwen2", "F32", SPLIT | {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2}),
    case("qwen3", "qwen3", "BF16", SMALL | {"head_dim": 24, "num_attention_heads": 8, "num_key_value_heads": 1}, {}),
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
    case("phi3", "phi3", "F16", SPLIT | {"hidden_size": 120, "num_key_value_heads": 2}, {}, own=PHI3),
    case("phi3-partial", "phi3", "F32", SPLIT | {"hidden_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2,
                                                 "tie_word_embeddings": True, "sliding_window": 11,
                                                 "rope_parameters": {"rope_type": "default", "rope_theta": 1e4,
                                                                     "partial_rotary_factor": 0.5}},
         {"rope.dimension_count": 12, "attention.sliding_window": 11}, own=PHI3),
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
]


def gguf_of(case, config, shapes):
    """Keys, and tensors with what they are made of."""
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    theta = (config.rope_parameters or {}).get("rope_theta", 10_000.0)
    keys = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": head_size,
        "attention.value_length": head_size,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.dimension_count": head_size,
        "rope.freq_base": theta,
    } | case["gguf"]
    names = COMMON | case["own"]
    tensors = []
    for name in shapes:
        module, kind = name.rsplit(".", 1)
        if module in OUTER:
            gguf = OUTER[module]
        else:
            _, _, layer, part = module.split(".", 3)
            gguf = f"blk.{layer}.{names[part]}"
        permute = None
        if case["is_permuted"] and "q_proj" in name:
            permute = config.num_attention_heads
        if case["is_permuted"] and "k_proj" in name:
            permute = config.num_key_value_heads
        add = 1.0 if "gemma" in case["kind"] and len(shapes[name]) == 1 else 0.0
        tensors.append({"name": f"{gguf}.{kind}", "from": name, "permuted_heads": permute, "add": add})
    return {"architecture": case["arch"], "keys": keys, "tensors": tensors}


def answer(case):
    config = AutoConfig.for_model(case["kind"], bos_token_id=None, eos_token_id=None, pad_token_id=None, **case["config"])
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config).float().eval()
    tied = config.tie_word_embeddings
    shapes, tensors = {}, []
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            shape = list(parameter.shape)
            base, scale = spread(name, shape, "gemma" in case["kind"])
            values = np.float32(base) + np.float32(scale) * uniform(name, parameter.numel())
            parameter.copy_(torch.from_numpy(values).view(shape).to(DTYPES[case["dtype"]]).float())
            shapes[name] = shape
            tensors.append({"name": name, "shape": shape, "base": base, "scale": scale})
    assert tied == ("lm_head.weight" not in shapes), case["name"]
    cases = []
    for length in [1, 5, 33]:
        prompt = [(i * 37 + length) % config.vocab_size for i in range(length)]
        tokens, last_logits, margins = list(prompt), None, []
        for _ in range(N_GREEDY):
            with torch.no_grad():
                logits = model(torch.tensor([tokens]), use_cache=False).logits[0, -1].float()
            best = torch.topk(logits, 2).values
            margins.append(float(best[0] - best[1]))
            last_logits = logits if last_logits is None else last_logits
            tokens.append(int(logits.argmax()))
        print(f"  {length}: margin {min(margins):.4f}, largest {float(last_logits.abs().max()):.3f}, greedy {tokens[length:]}")
        # Tokens are compared as far as no rounding can change one.
        sure = next((i for i, margin in enumerate(margins) if margin < 0.02 * float(last_logits.abs().max())), N_GREEDY)
        cases.append({"prompt": prompt, "last_logits": [float(f"{x:.6g}") for x in last_logits.tolist()],
                      "greedy": tokens[length:length + sure]})
    written = config.to_dict()
    written = {key: value for key, value in written.items() if not key.startswith("_") and key not in ("transformers_version", "dtype")}
    written["architectures"] = [type(model).__name__]
    gguf = None if case["gguf"] is None else gguf_of(case, config, shapes)
    return {"transformers": transformers.__version__, "dtype": case["dtype"], "config": written, "tensors": tensors, "gguf": gguf,
            "cases": cases}


def main():
    FOLDER.mkdir(exist_ok=True)
    for one in CASES:
        print(one["name"])
        text = json.dumps(answer(one), separators=(",", ":"))
        (FOLDER / f"{one['name']}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
