"""Losses and gradients of LoRA and of full fine-tuning by torch and peft, for tests/engine/train.rs: `python tests/golden/training.py`.

Writes tests/golden/training.json. Needs torch, transformers and peft; the tests need none of them: they make the same weights from the same
hash as `families.py`, whose models these are, and the same adapters and tokens.

Value i of matrix A of a module is `uniform(module + ".lora_A", i) / sqrt(inputs)`, of B `uniform(module + ".lora_B", i) * 0.1`; token i of text n
is `(37 i + 11 n² + i n) mod vocabulary`, and the last two thirds of a text are trained. Of each gradient there are its length and eight of its
values at equal steps, computed in double precision as far as transformers does.
"""

import json
import pathlib

import numpy as np
import peft
import torch
import transformers
from families import DTYPES, FOLDER, uniform
from transformers import AutoConfig, AutoModelForCausalLM

TARGET = pathlib.Path(__file__).parent / "training.json"
# Each with the modules that get matrices.
LLAMA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES = {
    "llama": LLAMA, "qwen2": LLAMA, "qwen3": LLAMA, "gemma2": LLAMA, "gemma3": LLAMA, "olmo2": LLAMA, "granite": LLAMA, "cohere": LLAMA,
    "phi": ["q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"],
    "starcoder2": ["q_proj", "k_proj", "v_proj", "o_proj", "c_fc", "c_proj"],
    "nemotron": ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"],
    # Queries, keys and values are one matrix there.
    "phi3": ["o_proj", "down_proj"],
}
# Those whose own weights are trained, all of them: with an embedding that is the head too, with biases, with several matrices in one.
FULL = [*CASES, "smollm3"]
# Of some the curve, by which optimiser and at which rate.
FULL_CURVES = {"llama": ("adamw", 3e-3), "qwen2": ("adamw", 3e-3), "gemma2": ("sgd", 3e-2)}
N_FULL_STEPS = 24
# Each with the ends of the names of norms that are trained whole: of rows, of heads, with a bias, with what is added to 1.
NORMS = {"llama": ["norm"], "gemma3": ["norm"], "olmo2": ["norm"], "cohere": ["norm"], "starcoder2": ["layernorm"], "nemotron": ["norm"]}
RANK, ALPHA = 4, 8
LENGTHS = [21, 9]
# The curve.
N_STEPS, N_WARMUP, N_TEXTS, RATE, DECAY, CLIP = 50, 5, 12, 1e-2, 0.01, 1.0
BATCH = 2


def text(number, length, vocab_size):
    return [(37 * i + 11 * number * number + i * number) % vocab_size for i in range(length)]


def base_of(name):
    """The model with the weights of its case, in double precision."""
    case = json.loads((FOLDER / f"{name}.json").read_text())
    config = AutoConfig.for_model(**case["config"])
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config).double().eval()
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for tensor in case["tensors"]:
            values = np.float32(tensor["base"]) + np.float32(tensor["scale"]) * uniform(tensor["name"], int(np.prod(tensor["shape"])))
            parameters.pop(tensor["name"]).copy_(torch.from_numpy(values).view(tensor["shape"]).to(DTYPES[case["dtype"]]).double())
    assert not parameters, list(parameters)
    return model, config


def model_of(name, targets, b_scale, norms=None):
    model, config = base_of(name)
    settings = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=targets, modules_to_save=norms, task_type="CAUSAL_LM")
    model = peft.get_peft_model(model, settings).double()
    trained = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            name = name.removeprefix("base_model.model.")
            if ".modules_to_save." in name:
                trained[name.replace(".modules_to_save.default", "")] = parameter
                continue
            module, kind = name.removesuffix(".default.weight").rsplit(".", 1)
            scale = np.float32(1) / np.sqrt(np.float32(parameter.shape[1])) if kind == "lora_A" else np.float32(b_scale)
            values = uniform(f"{module}.{kind}", parameter.numel()) * scale
            parameter.copy_(torch.from_numpy(values).view(parameter.shape).double())
            trained[f"{module}.{kind}"] = parameter
    return model, trained, config


def loss_of(model, tokens):
    """The sum of the losses of a text's trained tokens, and how many there are."""
    logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].double()
    first = max(1, len(tokens) // 3)
    losses = torch.nn.functional.cross_entropy(logits[first - 1:-1], torch.tensor(tokens[first:]), reduction="sum")
    return losses, len(tokens) - first


def rounded(value):
    return float(f"{float(value):.7g}")


def gradients(name, targets, norms=None):
    model, trained, config = model_of(name, targets, 0.1, norms)
    return {"targets": targets, "norms": norms or [], **gradients_of(name, model, trained, config)}


def full_gradients(name):
    model, config = base_of(name)
    return gradients_of(name, model, dict(model.named_parameters()), config)


def gradients_of(name, model, trained, config):
    parts = [loss_of(model, text(number, length, config.vocab_size)) for number, length in enumerate(LENGTHS)]
    loss = sum(part for part, _ in parts) / sum(count for _, count in parts)
    loss.backward()
    found = {}
    for key, parameter in trained.items():
        flat = parameter.grad.flatten()
        step = max(1, flat.numel() // 8)
        found[key] = {"norm": rounded(flat.norm()), "largest": rounded(flat.abs().max()), "values": [rounded(x) for x in flat[::step][:8]]}
    print(f"{name}: loss {float(loss):.5f}, {len(found)} matrices")
    return {"name": name, "loss": rounded(loss), "gradients": found}


def curve():
    model, trained, config = model_of("llama", LLAMA, 0.0)
    optimizer = torch.optim.AdamW(trained.values(), lr=RATE, weight_decay=DECAY)
    return losses_of("llama", model.float(), list(trained.values()), optimizer, N_STEPS, config)


def full_curve(name, kind, rate):
    model, config = base_of(name)
    model = model.float()
    parameters = list(model.parameters())
    # As transformers' Trainer has it, vectors are not decayed.
    groups = [{"params": [parameter for parameter in parameters if (parameter.dim() > 1) == decays], "weight_decay": DECAY * decays} for decays in (True, False)]
    optimizer = torch.optim.AdamW(groups, lr=rate) if kind == "adamw" else torch.optim.SGD(groups, lr=rate, momentum=0.9)
    return {"name": name, "optimizer": kind, "rate": rate, "losses": losses_of(name, model, parameters, optimizer, N_FULL_STEPS, config)}


def losses_of(name, model, parameters, optimizer, n_steps, config):
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, N_WARMUP, n_steps)
    losses = []
    for step in range(n_steps):
        numbers = [(step * BATCH + i * 5) % N_TEXTS for i in range(BATCH)]
        texts = [text(number, 6 + number, config.vocab_size) for number in numbers]
        parts = [loss_of(model, tokens) for tokens in texts]
        loss = sum(part for part, _ in parts) / sum(count for _, count in parts)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(rounded(loss))
    print(f"curve of {name}: {losses[0]:.4f} … {losses[-1]:.4f}")
    return losses


def main():
    torch.manual_seed(0)
    found = {"transformers": transformers.__version__, "peft": peft.__version__, "torch": torch.__version__,
             "cases": [gradients(name, targets) for name, targets in CASES.items()],
             "norms": [gradients(name, ["v_proj"], norms) for name, norms in NORMS.items()], "curve": curve(),
             "full": [full_gradients(name) for name in FULL], "full_curves": [full_curve(name, *how) for name, how in FULL_CURVES.items()]}
    TARGET.write_text(json.dumps(found, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
