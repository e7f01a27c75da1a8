"""One program beside which tierflow is measured, as a process of its own: `peers.py llama.cpp` or `peers.py accelerate`.

Reads one JSON object a line on stdin, {"do": NAME, ...arguments}, and answers each with one line on stdout:
{"answer": ...} or {"error": TEXT}. The model stays loaded between commands, so that loading is not timed and
measurements can alternate with those of other programs. Everything else that libraries print goes to stderr.
"""

import json
import os
import sys
import time


class LlamaCpp:
    """llama.cpp through the C interface that llama-cpp-python carries, with llama.cpp's own defaults."""

    def __init__(self):
        import llama_cpp

        self.lib = llama_cpp
        self.silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self.silent, None)
        llama_cpp.llama_backend_init()

    def describe(self):
        """The version, and the GPUs that this build can use here."""
        return {
            "version": f"llama-cpp-python {self.lib.__version__}",
            "devices": self._gpus() if self.lib.llama_supports_gpu_offload() else [],
        }

    def requantise(self, source, out, to):
        """Writes the GGUF file `source` with its matrices in form `to` (Q8_0 or F16), by llama.cpp's own quantiser."""
        options = self.lib.llama_model_quantize_default_params()
        options.ftype = {"Q8_0": self.lib.LLAMA_FTYPE_MOSTLY_Q8_0, "F16": self.lib.LLAMA_FTYPE_MOSTLY_F16}[to]
        options.allow_requantize = True
        options.pure = True
        if self.lib.llama_model_quantize(source.encode(), out.encode(), options) != 0:
            raise RuntimeError(f"llama.cpp cannot write {source} as {to}")

    def load(self, model, threads, placement, positions):
        """Loads a GGUF file with all its layers on `placement`: "cpu" or "gpu"."""
        options = self.lib.llama_model_default_params()
        options.n_gpu_layers = 999 if placement == "gpu" else 0
        self.model = self.lib.llama_model_load_from_file(model.encode(), options)
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {model}")
        options = self.lib.llama_context_default_params()
        options.n_ctx = positions
        options.op_offload = options.offload_kqv = placement == "gpu"
        options.n_threads = options.n_threads_batch = threads
        self.context = self.lib.llama_init_from_model(self.model, options)
        if not self.context:
            raise RuntimeError(f"llama.cpp makes no context of {positions} positions")
        self.vocabulary = self.lib.llama_vocab_n_tokens(self.lib.llama_model_get_vocab(self.model))

    def forget(self):
        """Empties the context."""
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)

    def append(self, tokens):
        """Computes the scores that follow `tokens`."""
        array = (self.lib.llama_token * len(tokens))(*tokens)
        if self.lib.llama_decode(self.context, self.lib.llama_batch_get_one(array, len(tokens))) != 0:
            raise RuntimeError("llama.cpp cannot decode")
        self.lib.llama_synchronize(self.context)

    def _gpus(self):
        import ctypes

        from llama_cpp._ggml import libggml

        def call(name, result, *arguments):
            function = getattr(libggml, name)
            function.restype = result
            return function(*arguments)

        gpus = (1, 2)  # GGML_BACKEND_DEVICE_TYPE_GPU and _IGPU
        count = call("ggml_backend_dev_count", ctypes.c_size_t)
        devices = [ctypes.c_void_p(call("ggml_backend_dev_get", ctypes.c_void_p, ctypes.c_size_t(n))) for n in range(count)]
        devices = [device for device in devices if call("ggml_backend_dev_type", ctypes.c_int, device) in gpus]
        texts = [(call("ggml_backend_dev_name", ctypes.c_char_p, d), call("ggml_backend_dev_description", ctypes.c_char_p, d)) for d in devices]
        return [f"{name.decode()} {description.decode()}" for name, description in texts]


class Accelerate:
    """A model of transformers with Accelerate's hooks, computing on the CPU."""

    def __init__(self):
        import accelerate
        import torch
        import transformers

        self.accelerate, self.torch, self.transformers = accelerate, torch, transformers
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()

    def describe(self):
        """The versions."""
        versions = [f"{module.__name__} {module.__version__}" for module in (self.accelerate, self.transformers, self.torch)]
        return {"version": ", ".join(versions), "devices": []}

    def safetensors(self, source, out):
        """Writes the GGUF file `source` as a folder of safetensors in f32."""
        folder, file = os.path.split(os.path.abspath(source))
        read = self.transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=self.torch.float32)
        # What was read from a GGUF file remembers that, and refuses to be written.
        if hasattr(read.config, "quantization_config"):
            del read.config.quantization_config
        model = type(read)(read.config)
        model.load_state_dict(read.state_dict())
        model.save_pretrained(out)

    def load(self, model, threads, placement, positions):
        """Loads a folder of safetensors: "ram", or offloaded to "ram offload" or "disk offload"."""
        del positions  # The cache grows by itself.
        self.torch.set_num_threads(threads)
        self.model = self.transformers.AutoModelForCausalLM.from_pretrained(model, dtype=self.torch.float32).eval()
        self.vocabulary = self.model.config.vocab_size
        if placement == "ram offload":
            self.model = self.accelerate.cpu_offload(self.model, execution_device=self.torch.device("cpu"))
        elif placement == "disk offload":
            import tempfile

            self.folder = tempfile.TemporaryDirectory(prefix="offload-", dir=os.path.dirname(os.path.abspath(model)))
            self.model = self.accelerate.disk_offload(self.model, self.folder.name, execution_device=self.torch.device("cpu"))
        self.forget()

    def forget(self):
        """Empties the context."""
        self.cache = None

    def append(self, tokens):
        """Computes the scores that follow `tokens`."""
        with self.torch.inference_mode():
            output = self.model(
                self.torch.tensor([tokens]), past_key_values=self.cache, use_cache=True, logits_to_keep=1
            )
        self.cache = output.past_key_values


def measure(peer, n_prompt, n_gen):
    """Tokens per second of one prompt and of single tokens, each from an empty context; the tokens of `tierflow bench`."""
    token = lambda index: (index * 7919 + 13) % peer.vocabulary
    rates = {}
    if n_prompt > 0:
        peer.forget()
        begin = time.perf_counter()
        peer.append([token(index) for index in range(n_prompt)])
        rates["prompt"] = n_prompt / (time.perf_counter() - begin)
    if n_gen > 0:
        peer.forget()
        begin = time.perf_counter()
        for index in range(n_gen):
            peer.append([token(index)])
        rates["decode"] = n_gen / (time.perf_counter() - begin)
    return rates


def main():
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    peer = None
    for line in sys.stdin:
        try:
            arguments = json.loads(line)
            command = arguments.pop("do")
            peer = peer or {"llama.cpp": LlamaCpp, "accelerate": Accelerate}[sys.argv[1]]()
            answer = measure(peer, **arguments) if command == "measure" else getattr(peer, command)(**arguments)
            answers.write(json.dumps({"answer": answer}) + "\n")
        except Exception as error:  # Whatever fails is the caller's to judge.
            answers.write(json.dumps({"error": f"{type(error).__name__}: {error}"}) + "\n")


if __name__ == "__main__":
    main()
