#!/usr/bin/env python3
"""Makes quantised.json: values, their blocks as the PyPI package `gguf` (0.19.0) quantises them, and the errors of llama.cpp's own
K-quants (`ggml_quantize_chunk` of its libggml-base, which is prebuilt in npm's `@node-llama-cpp/linux-x64`).

python3 tests/golden/quantised.py PATH/TO/libggml-base.so > tests/golden/quantised.json
"""

import ctypes
import json
import sys

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize

FORMULAS = ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "MXFP4"]
SEARCHES = ["Q4_K", "Q5_K", "Q6_K"]

random = np.random.default_rng(5)
# As weights mostly are, with heavy tails, without a middle of 0, and of very different sizes.
values = np.concatenate([
    random.normal(0, 0.02, 512), random.standard_t(3, 256) * 0.05, random.uniform(-0.2, 1, 128),
    random.normal(0, 1, 128) * 10.0 ** random.integers(-4, 2, 128),
]).astype(np.float32)
values[32:64] = 0

blocks = {name: quantize(values.reshape(4, 256), GGMLQuantizationType[name]).tobytes().hex() for name in FORMULAS}

library = ctypes.CDLL(sys.argv[1])
library.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p] + [ctypes.c_int64] * 3 + [ctypes.c_void_p]
library.ggml_quantize_chunk.restype = ctypes.c_size_t


def many(n):
    """Sums of four uniform numbers from a linear congruential generator; of every other block their cubes. The tests make the same."""
    states = np.empty(4 * n, dtype=np.uint32)
    state = 1
    for index in range(4 * n):
        state = (1664525 * state + 1013904223) % 2**32
        states[index] = state
    uniform = (states >> 9).astype(np.float32) / np.float32(2**22) - np.float32(1)
    sums = uniform.reshape(n, 4) @ np.ones(4, dtype=np.float32)
    return np.where(np.arange(n) // 256 % 2 == 1, sums * sums * sums, sums).astype(np.float32)


errors = {}
values_of_errors = many(64 * 256)
for name in SEARCHES:
    dtype = GGMLQuantizationType[name]
    output = np.zeros(64 * GGML_QUANT_SIZES[dtype][1], dtype=np.uint8)
    written = library.ggml_quantize_chunk(dtype.value, values_of_errors.ctypes.data, output.ctypes.data, 0, 64, 256, None)
    assert written == output.size
    found = dequantize(output, dtype).reshape(64, 256).astype(np.float64)
    expected = values_of_errors.reshape(64, 256).astype(np.float64)
    errors[name] = float(np.mean(np.sqrt(np.sum((found - expected) ** 2, axis=1) / np.sum(expected**2, axis=1))))

print(json.dumps({"values": values.view(np.uint32).tolist(), "blocks": blocks, "errors": errors}, separators=(",", ":")))
