// The folder of a tiny safetensors model with zeros for weights: enough to plan with.

import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

const CONFIG = {
  architectures: ['LlamaForCausalLM'],
  model_type: 'llama',
  hidden_size: 64,
  intermediate_size: 128,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  vocab_size: 256,
  max_position_embeddings: 512,
  rms_norm_eps: 1e-5,
  rope_theta: 10000,
  hidden_act: 'silu',
  tie_word_embeddings: false,
  torch_dtype: 'float32',
};

/** Writes the model into `folder`, with a file beside it that is none of the model's. */
export function writeTinyFolder(folder) {
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, 'config.json'), JSON.stringify(CONFIG));
  writeFileSync(join(folder, 'README.md'), 'not part of the model');
  writeFileSync(join(folder, 'model.safetensors'), safetensors(shapes(CONFIG)));
}

function shapes({ hidden_size: hidden, intermediate_size: ffn, num_hidden_layers, num_attention_heads, num_key_value_heads, vocab_size }) {
  const kv = (hidden / num_attention_heads) * num_key_value_heads;
  const layer = {
    'input_layernorm.weight': [hidden],
    'self_attn.q_proj.weight': [hidden, hidden],
    'self_attn.k_proj.weight': [kv, hidden],
    'self_attn.v_proj.weight': [kv, hidden],
    'self_attn.o_proj.weight': [hidden, hidden],
    'post_attention_layernorm.weight': [hidden],
    'mlp.gate_proj.weight': [ffn, hidden],
    'mlp.up_proj.weight': [ffn, hidden],
    'mlp.down_proj.weight': [hidden, ffn],
  };
  const layers = Array.from({ length: num_hidden_layers }, (_, index) => Object.entries(layer).map(([name, shape]) => [`model.layers.${index}.${name}`, shape]));
  return [['model.embed_tokens.weight', [vocab_size, hidden]], ...layers.flat(), ['model.norm.weight', [hidden]], ['lm_head.weight', [vocab_size, hidden]]];
}

/** Length of the header, header, data. */
function safetensors(tensors) {
  const header = {};
  let end = 0;
  for (const [name, shape] of tensors) {
    const size = shape.reduce((product, dimension) => product * dimension, 4);
    header[name] = { dtype: 'F32', shape, data_offsets: [end, (end += size)] };
  }
  const text = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  return Buffer.concat([length, text, Buffer.alloc(end)]);
}
