"""Answers of small models with LoRA adapters by peft, for tests/engine/lora.rs: `python tests/golden/lora.py [CASE…]`.

Writes tests/golden/lora/CASE/: the adapter as peft saves it, and expected.json with the name of the family's model that it is for
(families.py) and its answers; of those in GGUF also adapter.gguf, laid out as llama.cpp's converter does it. Needs torch, transformers, peft
and gguf; the tests need none of them.
"""

import json
import pathlib
import shutil
import sys

import gguf
import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from safetensors.numpy import load_file

import families

FOLDER = pathlib.Path(__file__).parent / "lora"
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ALL = ATTENTION + ["gate_proj", "up_proj", "down_proj"]

# The family's model, how the adapter is stored, and its config.
CASES = {
    "llama": ("llama", "F32", {"r": 4, "lora_alpha": 6, "target_modules": ALL, "layers_to_transform": [0, 3]}),
    # Ranks that no kernel likes, a head, patterns.
    "llama-patterns": ("llama", "BF16", {"r": 3, "lora_alpha": 5, "target_modules": r".*(\.1\..*_proj|lm_head)", "use_rslora": True,
                                         "rank_pattern": {r"self_attn\.[qk]_proj": 5, "lm_head": 1}, "alpha_pattern": {"down_proj": 2}}),
    "qwen2": ("qwen2", "F16", {"r": 8, "lora_alpha": 16, "target_modules": ALL, "layers_to_transform": [1]}),
    "qwen3": ("qwen3", "BF16", {"r": 2, "lora_alpha": 4, "target_modules": ALL, "layers_to_transform": [0, 2]}),
    "gemma2": ("gemma2", "F32", {"r": 2, "lora_alpha": 3, "target_modules": ATTENTION + ["down_proj"], "layers_to_transform": [0, 1]}),
    "gemma3": ("gemma3", "F16", {"r": 4, "lora_alpha": 8, "target_modules": ["v_proj", "gate_proj"]}),
    "phi3": ("phi3", "F32", {"r": 3, "lora_alpha": 6, "target_modules": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
                             "layers_to_transform": [0, 3]}),
    "gpt2": ("gpt2", "F32", {"r": 4, "lora_alpha": 4, "target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True,
                             "layers_to_transform": [1], "layers_pattern": "h"}),
    "gpt_neox": ("gpt_neox", "F32", {"r": 4, "lora_alpha": 8, "target_modules": ["query_key_value", "dense_4h_to_h"],
                                     "layers_to_transform": [1, 2], "layers_pattern": "layers"}),
    # Queries and their gates, head by head; what stands in place of attention.
    "qwen3_5": ("qwen3_5", "F16", {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "o_proj", "in_proj_qkv", "out_proj"]}),
    # Norms that are replaced: of rows, of heads, with what is added to 1, with a bias.
    "llama-norms": ("llama", "F32", {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "layers_to_transform": [0], "modules_to_save": ["norm"]}),
    "gemma3-norms": ("gemma3", "BF16", {"r": 2, "lora_alpha": 4, "target_modules": ["v_proj"], "layers_to_transform": [1],
                                        "modules_to_save": ["k_norm", "post_feedforward_layernorm", "model.norm"]}),
    "starcoder2-norms": ("starcoder2", "F16", {"r": 2, "lora_alpha": 4, "target_modules": ["c_fc"], "layers_to_transform": [1],
                                               "modules_to_save": ["input_layernorm"]}),
    # Two norms of one input.
    "olmo2": ("olmo2", "BF16", {"r": 4, "lora_alpha": 8, "target_modules": ALL, "layers_to_transform": [2]}),
}

# Adapters that are also there as files of llama.cpp: the model's architecture, and heads of matrices that its converter permutes.
GGUF = {"llama": (gguf.MODEL_ARCH.LLAMA, {"q_proj": 6, "k_proj": 3}), "phi3": (gguf.MODEL_ARCH.PHI3, {})}


def fill(model):
    """Gives the adapter values of which each counts; they are what the file's dtype can hold."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                scale = np.float32(1.2 / np.sqrt(parameter.shape[1]))
                values = torch.from_numpy(scale * families.uniform(name, parameter.numel())).view(parameter.shape)
            elif ".modules_to_save." in name:
                values = parameter + torch.from_numpy(np.float32(0.4) * families.uniform(name, parameter.numel()))
            else:
                continue
            parameter.copy_(values.to(families.DTYPES[model.stored]).float())


def save(model, folder):
    shutil.rmtree(folder, ignore_errors=True)
    stored = {name: value.to(families.DTYPES[model.stored]).contiguous() for name, value in model.state_dict().items()
              if "lora_" in name or ".modules_to_save." in name}
    model.save_pretrained(folder, state_dict=stored, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)


def write_gguf(folder, architecture, permuted):
    """The adapter in `folder` as a file for llama.cpp: rows of the halves of each head are in turns in matrices that are `permuted`."""
    config = json.loads((folder / "adapter_config.json").read_text())
    names = gguf.get_tensor_name_map(architecture, 64)
    writer = gguf.GGUFWriter(folder / "adapter.gguf", gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, config["lora_alpha"])
    for name, values in sorted(load_file(folder / "adapter_model.safetensors").items()):
        module, half = name.removeprefix("base_model.model.").removesuffix(".weight").split(".lora_")
        heads = permuted.get(module.rsplit(".", 1)[1])
        if heads and half == "B":
            values = values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        writer.add_tensor(names.get_name(module) + f".weight.lora_{half.lower()}", np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def answer(base, stored, config):
    case = next(case for case in families.CASES if case["name"] == base)
    of_model, model, _, _ = families.loaded(case)
    prompts = [families.prompt_of(case, model, of_model, length) for length in case["lengths"]]

    def logits(model):
        with torch.no_grad():
            return [model(torch.tensor([prompt]), use_cache=False).logits[0, -1].float() for prompt in prompts]

    plain = logits(model)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **config)).eval()
    model.stored = stored
    fill(model)
    adapted = logits(model)
    cases = []
    for prompt, before, after in zip(prompts, plain, adapted):
        change = float((after - before).abs().max() / before.abs().max())
        assert change > 0.05, f"{base}: the adapter changes nothing"
        print(f"  {len(prompt)}: changes by {change:.3f}")
        cases.append({"prompt": prompt, "last_logits": [float(f"{x:.6g}") for x in after.tolist()], "greedy": []})
    return model, cases


def main():
    for name, (base, stored, config) in CASES.items():
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        print(name)
        model, cases = answer(base, stored, config)
        save(model, FOLDER / name)
        (FOLDER / name / "expected.json").write_text(json.dumps({"base": base, "cases": cases}, separators=(",", ":")) + "\n")
        if name in GGUF:
            write_gguf(FOLDER / name, *GGUF[name])


if __name__ == "__main__":
    main()
