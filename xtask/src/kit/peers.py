"""What torch, transformers and Accelerate reach on this machine, for comparison with tierflow on the same card.

    peers.py MODEL BUDGET [--secs N] [--batches 1,8,32] [--prompt N]

MODEL is a folder with safetensors, BUDGET what Accelerate may use of the GPU, as in 4GiB. Prints a JSON object a line, each as soon as
it is measured: rates in bytes, operations or tokens per second. Begins nothing new after N seconds; a case that fails is told and the
next one begins. Without a GPU everything runs on the CPU, to show that it runs.
"""

import argparse
import gc
import json
import os
import shutil
import sys
import tempfile
import time

START = time.monotonic()

import accelerate
import torch
import transformers
from transformers import AutoModelForCausalLM

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda:0" if ON_GPU else "cpu"


def show(what, **values):
    print(json.dumps({"what": what, **values}), flush=True)


def synchronize():
    if ON_GPU:
        torch.cuda.synchronize()


def fastest(work, runs=5, repeats=3):
    """Seconds of the fastest of some runs, each of some repeats, after one that warms up."""
    work()
    synchronize()
    best = float("inf")
    for _ in range(runs):
        begin = time.perf_counter()
        for _ in range(repeats):
            work()
        synchronize()
        best = min(best, (time.perf_counter() - begin) / repeats)
    return best


def copies():
    """Copies on the card, and between the host's pinned or pageable memory and the card."""
    n_bytes = 1 << (30 if ON_GPU else 24)
    source = torch.empty(n_bytes, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    show("device_copy", bytes=n_bytes, read_and_written_rate=2 * n_bytes / fastest(lambda: target.copy_(source)))
    if not ON_GPU:
        return
    del target
    for mib in (1, 4, 16, 64):
        on_card = source[: mib << 20]
        for kind in ("pinned", "pageable"):
            on_host = torch.zeros(mib << 20, dtype=torch.uint8, pin_memory=kind == "pinned")
            repeats = max(1, 256 // mib)
            up = fastest(lambda: on_card.copy_(on_host, non_blocking=True), repeats=repeats)
            down = fastest(lambda: on_host.copy_(on_card, non_blocking=True), repeats=repeats)
            show("host_copy", memory=kind, bytes=mib << 20, to_device_rate=(mib << 20) / up, to_host_rate=(mib << 20) / down)


def products():
    """Large matrix products; float32 without TF32, which rounds its inputs."""
    size = 8192 if ON_GPU else 256
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        a = torch.randn(size, size, device=DEVICE).to(dtype)
        b = torch.randn(size, size, device=DEVICE).to(dtype)
        show("product", dtype=str(dtype).removeprefix("torch."), size=size, flops=2 * size**3 / fastest(lambda: a @ b))
    a = torch.randn(8192 if ON_GPU else 256, 4096 if ON_GPU else 256, device=DEVICE).to(torch.bfloat16)
    x = torch.randn(a.shape[1], 1, device=DEVICE).to(torch.bfloat16)
    show("matrix_vector", dtype="bfloat16", shape=list(a.shape), rate=a.nbytes / fastest(lambda: a @ x, repeats=50))


def generation(model, way, batches, n_prompt, n_tokens, is_late):
    """Tokens per second of a prompt, and of single tokens of so many sequences at once, by the model's own forward and cache."""
    vocabulary = model.config.vocab_size
    device = torch.device(DEVICE)

    def forward(ids, cache):
        output = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return output.logits[:, -1].argmax(-1, keepdim=True), output.past_key_values

    def prompt(batch, length):
        return ((torch.arange(length, device=device) * 7919 + 13) % vocabulary).repeat(batch, 1)

    with torch.inference_mode():
        # The first forward of a model prepares more than the later ones.
        forward(prompt(1, 8), None)
        synchronize()
        begin = time.perf_counter()
        forward(prompt(1, n_prompt), None)
        synchronize()
        show("generation", way=way, test="prompt", batch=1, n_tokens=n_prompt, tokens_per_sec=n_prompt / (time.perf_counter() - begin))
        for batch in batches:
            if is_late():
                break
            ids, cache = forward(prompt(batch, 16), None)
            ids, cache = forward(ids, cache)
            synchronize()
            begin = time.perf_counter()
            for _ in range(n_tokens):
                ids, cache = forward(ids, cache)
            synchronize()
            rate = batch * n_tokens / (time.perf_counter() - begin)
            show("generation", way=way, test="decode", batch=batch, n_tokens=n_tokens, tokens_per_sec=rate)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("budget")
    parser.add_argument("--secs", type=float, default=140)
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--prompt", type=int, default=512)
    args = parser.parse_args()
    batches = [int(batch) for batch in args.batches.split(",")]
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    show(
        "versions",
        torch=torch.__version__,
        transformers=transformers.__version__,
        accelerate=accelerate.__version__,
        device=torch.cuda.get_device_name() if ON_GPU else "cpu",
    )
    folder = tempfile.mkdtemp(prefix="offload-", dir=os.path.dirname(os.path.abspath(args.model)))
    is_late = lambda: time.monotonic() - START > args.secs

    def load(**placement):
        return AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16, **placement).eval()

    # Without a GPU a budget for it would be one for nothing: the host has it instead, and the rest goes to disk.
    first = 0 if ON_GPU else "cpu"
    models = {
        "resident": (lambda: load(device_map={"": DEVICE}), 16),
        "device_map=auto, rest in host memory": (
            lambda: load(device_map="auto", max_memory={first: args.budget, "cpu": "1000GiB"}),
            3,
        ),
        "cpu_offload": (lambda: accelerate.cpu_offload(load(), execution_device=torch.device(DEVICE)), 3),
        "device_map=auto, rest on disk": (
            lambda: load(device_map="auto", max_memory={first: args.budget, "cpu": args.budget if not ON_GPU else 0}, offload_folder=folder),
            2,
        ),
        "disk_offload": (lambda: accelerate.disk_offload(load(), folder, execution_device=torch.device(DEVICE)), 2),
    }
    cases = [("copies", copies), ("products", products)]
    for way, (make, n_tokens) in models.items():
        cases.append((way, lambda way=way, make=make, n=n_tokens: generation(make(), way, batches, args.prompt, n, is_late)))
    try:
        for name, case in cases:
            if is_late():
                show("left_out", case=name, reason="the time is up")
                continue
            try:
                case()
            except Exception as error:  # Whatever it is, the next case has nothing to do with it.
                show("left_out", case=name, reason=f"{type(error).__name__}: {error}"[:500])
            gc.collect()
            if ON_GPU:
                torch.cuda.empty_cache()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
