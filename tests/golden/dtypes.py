#!/usr/bin/env python3
"""Makes dtypes.json: blocks of random bytes in every quantised dtype, decoded by the PyPI package `gguf` (0.19.0, with numpy).

python3 tests/golden/dtypes.py > tests/golden/dtypes.json
"""

import json

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

# Where a block has its halves; MXFP4 has an exponent instead, IQ1_M four quarters of one.
HALVES = {
    "Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q2_K": [80, 82], "Q3_K": [108],
    "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0], "MXFP4": [],
    "TQ1_0": [52], "TQ2_0": [64], "IQ3_XXS": [0], "IQ3_S": [0],
    "IQ2_XXS": [0], "IQ2_XS": [0], "IQ2_S": [0], "IQ1_S": [0], "IQ1_M": [],
}

made = {}
for index, (name, halves) in enumerate(HALVES.items()):
    dtype = GGMLQuantizationType[name]
    block_len, block_bytes = GGML_QUANT_SIZES[dtype]
    random = np.random.default_rng(index)
    blocks = random.integers(0, 256, size=(3 if block_len == 32 else 2, block_bytes), dtype=np.uint8)
    for block in blocks:
        for place in halves:
            block[place:place + 2] = np.frombuffer(np.float16(random.uniform(-1, 1)).tobytes(), dtype=np.uint8)
    if name == "MXFP4":
        blocks[:, 0] = [0, 1, 126]
    if name == "IQ1_M":
        for block in blocks:
            half = int(np.float16(random.uniform(-1, 1)).view(np.uint16))
            for index in range(4):
                place = 49 + 2 * index
                block[place] = block[place] & 15 | half >> 4 * index << 4 & 0xF0
    values = dequantize(blocks.reshape(-1), dtype)
    made[name] = {"bytes": blocks.tobytes().hex(), "values": [float(value) for value in values.reshape(-1)]}
print("{\n" + ",\n".join(f'"{name}": {json.dumps(entry, separators=(",", ":"))}' for name, entry in made.items()) + "\n}")
