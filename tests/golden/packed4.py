#!/usr/bin/env python3
"""Makes packed4.json: 4-bit integers as they are packed in folders, and what was packed: integers,
zeros and scales of groups of columns. A value is its integer minus the zero, times the scale. Needs numpy, torch and the PyPI package compressed-tensors (0.20.1).

"rows": compressed-tensors' own `pack_to_int32`, and `unpack_from_int32` to be sure.
"eight columns": GPTQ, `[columns / 8, rows]`, eight columns from the lowest bits on (`QuantLinear.pack` of AutoGPTQ and GPTQModel).
"eight rows": AWQ, `[columns, rows / 8]`, rows 0, 2, 4, 6, 1, 3, 5, 7 from the lowest bits on (`WQLinear_GEMM.from_linear` of AutoAWQ).

python3 tests/golden/packed4.py > tests/golden/packed4.json
"""

import json

import numpy as np
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32

AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def words(integers):
    """Eight integers of the last dimension in a word."""
    spread = integers.astype(np.uint32).reshape(*integers.shape[:-1], -1, 8)
    return np.bitwise_or.reduce(spread << np.arange(0, 32, 4, dtype=np.uint32), axis=-1).astype(np.uint32).view(np.int32)


def packed(packing, integers):
    if packing == "rows":
        signed = torch.from_numpy(integers.astype(np.int8) - 8)
        found = pack_to_int32(signed, 4)
        assert torch.equal(unpack_from_int32(found, 4, signed.shape), signed)
        return found.numpy()
    if packing == "eight columns":
        return words(integers).T
    rows = integers.T.reshape(integers.shape[1], -1, 8)
    return words(rows[:, :, AWQ_ORDER].reshape(integers.shape[1], -1))


def case(packing, shape, group, seed, *, symmetric=True, least_zero=0):
    random = np.random.default_rng(seed)
    integers = random.integers(0, 16, shape)
    n_groups = shape[1] // group
    # As BF16 has them, which halves hold too.
    scales = (random.uniform(0.001, 0.1, [shape[0], n_groups]).astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)
    zeros = np.full(scales.shape, 8) if symmetric else random.integers(least_zero, least_zero + 16, scales.shape)
    if not symmetric:
        # The widest differences.
        zeros.flat[:2], integers[0, :2] = [least_zero, least_zero + 15], [0, 15]
    return {"packing": packing, "shape": shape, "group": group, "packed": packed(packing, integers).reshape(-1).tolist(),
            "scales": [float(x) for x in scales.reshape(-1)], "zeros": [] if symmetric else zeros.reshape(-1).tolist(),
            "integers": integers.reshape(-1).tolist()}


print(json.dumps([
    case("rows", [3, 128], 64, 1), case("rows", [5, 96], 32, 2), case("rows", [2, 96], 96, 3), case("rows", [5, 64], 32, 4, symmetric=False),
    case("eight columns", [7, 128], 64, 5), case("eight columns", [5, 96], 32, 6, symmetric=False, least_zero=1),
    case("eight rows", [16, 64], 32, 7), case("eight rows", [8, 96], 96, 8, symmetric=False), case("eight rows", [40, 64], 64, 9, symmetric=False),
], separators=(",", ":")))
