#!/usr/bin/env python3
"""Makes nf4.json: matrices as the PyPI package bitsandbytes (0.50.2) quantises them to NF4, and what its `dequantize_4bit` makes of
them on the CPU. (It mistakes the scales of rows that are shorter than a block and a multiple of 16 long, hence these shapes; each
value is near what was quantised.)

python3 tests/golden/nf4.py > tests/golden/nf4.json
"""

import json

import bitsandbytes.functional as bnb
import torch


def bits(values):
    kind = torch.int32 if values.dtype == torch.float32 else torch.int16
    mask = 2**32 - 1 if values.dtype == torch.float32 else 2**16 - 1
    return [int(x) & mask for x in values.reshape(-1).view(kind)]


def case(dtype, shape, block, *, nested):
    weights = torch.randn(shape).to(dtype) * 0.05
    codes, state = bnb.quantize_4bit(weights, blocksize=block, compress_statistics=nested, quant_type="nf4")
    values = bnb.dequantize_4bit(codes, state)
    assert (values - weights).abs().max() < 0.2 * weights.abs().max()
    scales = [int(x) for x in state.absmax] if nested else bits(state.absmax)
    inner = {"table": state.state2.code.tolist(), "block": state.state2.blocksize, "scales": state.state2.absmax.tolist(),
             "offset": float(state.offset)} if nested else None
    return {"dtype": str(dtype).removeprefix("torch."), "n_values": values.numel(), "block": block, "codes": codes.reshape(-1).tolist(),
            "table": state.code.tolist(), "scales": scales, "nested": inner, "values": bits(values)}


torch.manual_seed(3)
print(json.dumps([
    case(torch.bfloat16, [9, 50], 64, nested=False), case(torch.float16, [33, 18], 64, nested=True),
    case(torch.float32, [2, 130], 128, nested=False),
], separators=(",", ":")))
