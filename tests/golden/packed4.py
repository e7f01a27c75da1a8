#!/usr/bin/env python3
"""Makes packed4.json: 4-bit integers packed and dequantised by the formulas of compressed-tensors' `pack_to_int32` and `dequantize`
(symmetric, `pack-quantized`): eight integers a word from the lowest bits on, each with 8 added; a value is its integer times the scale of
its group of columns.

python3 tests/golden/packed4.py > tests/golden/packed4.json
"""

import json

import numpy as np


def case(shape, group, seed):
    random = np.random.default_rng(seed)
    integers = random.integers(-8, 8, shape)
    words = (integers + 8).astype(np.uint32).reshape(shape[0], shape[1] // 8, 8)
    packed = np.bitwise_or.reduce(words << np.arange(0, 32, 4, dtype=np.uint32), axis=-1).astype(np.uint32)
    # As BF16 has them, which halves hold too.
    scales = (random.uniform(0.001, 0.1, [shape[0], shape[1] // group]).astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)
    values = integers.astype(np.float32) * np.repeat(scales, group, axis=1)
    return {"shape": shape, "group": group, "packed": packed.view(np.int32).reshape(-1).tolist(),
            "scales": [float(x) for x in scales.reshape(-1)], "values": [float(x) for x in values.reshape(-1)]}


print(json.dumps([case([3, 128], 64, 1), case([5, 96], 32, 2), case([2, 96], 96, 3)], separators=(",", ":")))
