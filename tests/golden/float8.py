#!/usr/bin/env python3
"""Makes float8.json: matrices of 8-bit floats with scales, dequantised by torch as transformers' `Fp8Dequantize` and compressed-tensors'
`dequantize` do: the value in f32 times its scale, rounded to BF16.

python3 tests/golden/float8.py > tests/golden/float8.json
"""

import json

import numpy as np
import torch

DTYPES = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}


def case(dtype, shape, block, seed):
    random = np.random.default_rng(seed)
    n_values = shape[0] * shape[1]
    # All bytes, then any.
    stored = np.concatenate([np.arange(256), random.integers(0, 256, n_values)])[:n_values].astype(np.uint8)
    grid = [-(-shape[0] // block[0]), -(-shape[1] // block[1])]
    scales = (10.0 ** random.uniform(-5, 1, grid)).astype(np.float32)
    spread = np.repeat(np.repeat(scales, block[0], axis=0), block[1], axis=1)[:shape[0], :shape[1]]
    values = torch.from_numpy(stored).view(DTYPES[dtype]).view(shape).to(torch.float32) * torch.from_numpy(spread.copy())
    return {"dtype": dtype, "shape": shape, "block": block, "bytes": stored.tolist(), "scales": [float(x) for x in scales.reshape(-1)],
            "values": values.to(torch.bfloat16).view(torch.uint16).reshape(-1).tolist()}


print(json.dumps([
    case("F8_E4M3", [7, 37], [7, 37], 1),
    case("F8_E4M3", [9, 40], [1, 40], 2),
    case("F8_E4M3", [11, 70], [4, 32], 3),
    case("F8_E5M2", [13, 21], [1, 21], 4),
], separators=(",", ":")))
