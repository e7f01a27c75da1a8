// Every shader through the browser's own compiler (Tint in Chromium), which is stricter than naga about uniform control flow:
// module and pipelines, at WebGPU's default limits and with none of its features.

import assert from 'node:assert/strict';
import { after } from 'node:test';

import { NOT_SHORT, start } from '../support/browser.mjs';
import { before, test } from '../support/limited.mjs';

/** For adapters with subgroups and 64-bit words, which WGSL does not have outside of naga: no browser runs them. */
const NOT_IN_BROWSERS = ['matmul_subgroup', 'expert_matmul_subgroup', 'attention_subgroup', 'attention_subgroup_tile'];

const FLOAT_DTYPES = [0, 1, 2];
/** Values and bytes of a block, and how far apart values stand that share bytes, as `src/dtype/blocks.rs` has them. */
const BLOCK_DTYPES = [[32, 34, 16], [32, 18, 16], [32, 20, 16], [256, 210, 32], [32, 22, 16], [32, 24, 16], [256, 144, 32],
  [256, 176, 32], [256, 110, 32], [32, 18, 16], [256, 136, 16], [32, 17, 16], [256, 84, 32], [256, 54, 16], [256, 66, 32],
  [256, 98, 16], [256, 110, 16], [256, 66, 16], [256, 74, 16], [256, 82, 16], [256, 50, 16], [256, 56, 16]];
const DTYPES = [...FLOAT_DTYPES.map(() => [32, 0, 16]), ...BLOCK_DTYPES]
  .map(([BLOCK_LEN, BLOCK_BYTES, APART], DTYPE) => ({ DTYPE, BLOCK_LEN, BLOCK_BYTES, APART }));
const BOOLS = [0, 1];
/** Dtypes of keys and of values, as `kernels/rope_kv.rs` numbers them: floats, blocks, and all of them. */
const kvDtypes = (isOne) => [0, 1, 2, 3].flatMap((KEY_DTYPE) => [0, 1, 2, 3].map((VALUE_DTYPE) => ({ KEY_DTYPE, VALUE_DTYPE })))
  .filter(({ KEY_DTYPE, VALUE_DTYPE }) => isOne(KEY_DTYPE, VALUE_DTYPE));
const FLOATS = kvDtypes((key, value) => key < 2 && value < 2);
const BLOCKS = kvDtypes((key, value) => key > 1 || value > 1);
const KV_DTYPES = [...FLOATS, ...BLOCKS];
/** The override constants that the engine sets, as `kernels/` chooses them. */
const VARIANTS = {
  matmul_vec: combined({ DTYPE: DTYPES, TOKENS: [1, 2, 4] }, [
    { LANES: 1, WORKGROUP: 8, ROWS: 8 },
    { LANES: 32, WORKGROUP: 64, ROWS: 4 },
    { LANES: 8, WORKGROUP: 256, ROWS: 4 },
    { LANES: 64, WORKGROUP: 128, ROWS: 8 },
  ]),
  matmul_tile: combined({ DTYPE: DTYPES }, [
    { ROWS: 32, TOKENS: 32, LANE_ROWS: 4, LANE_TOKENS: 4, WORKGROUP: 64 },
    { ROWS: 64, TOKENS: 64, LANE_ROWS: 8, LANE_TOKENS: 8, WORKGROUP: 64 },
    { ROWS: 16, TOKENS: 64, LANE_ROWS: 2, LANE_TOKENS: 2, WORKGROUP: 256 },
  ]),
  expert_matmul: combined({ DTYPE: DTYPES, IN_SLOTS: [0, 1], IS_CHOSEN: [1, 1, 0] }, [
    { LANES: 1, WORKGROUP: 8 },
    { LANES: 32, WORKGROUP: 64 },
  ]),
  expert_matmul_tile: combined({ DTYPE: DTYPES, IN_SLOTS: [0, 1], IS_CHOSEN: [1, 1, 0] }, [
    { ROWS: 8, TOKENS: 16, LANE_ROWS: 4, LANE_TOKENS: 4, WORKGROUP: 8 },
    { ROWS: 32, TOKENS: 32, LANE_ROWS: 4, LANE_TOKENS: 4, WORKGROUP: 64 },
  ]),
  route: combined({ LANES: [1, 64], HAS_BIAS: BOOLS, HAS_FACTORS: BOOLS }),
  sum_experts: combined({ IS_WEIGHTED: BOOLS }),
  conv: combined({ HAS_BIAS: BOOLS }),
  delta_rule: combined({ IS_LOG: BOOLS }),
  matmul_unaligned: combined({ DTYPE: FLOAT_DTYPES }),
  rms_norm: combined({ LANES: [8, 64], HAS_WEIGHT: BOOLS }),
  layer_norm: combined({ LANES: [8, 64], HAS_BIAS: BOOLS }),
  rope_kv: combined({ DTYPES: FLOATS, HAS_VALUES: BOOLS }),
  rope_kv_padded: combined({ DTYPES: FLOATS, HAS_VALUES: [1, 0] }),
  rope_kv_blocks: combined({ DTYPES: BLOCKS, HAS_VALUES: BOOLS, OCTETS: [8, 12] }),
  attention_token: combined({ DTYPES: KV_DTYPES, HAS_SOFTCAP: BOOLS, HAS_SINKS: BOOLS, IS_SPLIT: BOOLS, PART_POSITIONS: [64] }, [
    { LANES: 64, HEADS: 1, POSITIONS: 1, OCTETS: 16, SHARERS: 4 },
    ...[1, 2, 3, 4].map((HEADS) => ({ LANES: 8, HEADS, POSITIONS: 4, OCTETS: 8, SHARERS: 1 })),
  ]),
  attention_tile: combined({ DTYPES: KV_DTYPES, HAS_SOFTCAP: BOOLS, HAS_SINKS: BOOLS }, [
    { OCTETS: 4, SPLIT: 1, BLOCK: 16 },
    { OCTETS: 8, SPLIT: 2, BLOCK: 16 },
    { OCTETS: 16, SPLIT: 4, BLOCK: 16 },
    { OCTETS: 32, SPLIT: 8, BLOCK: 8 },
  ]),
  attention_combine: combined({ PART_POSITIONS: [64], HAS_SINKS: BOOLS }),
  attention_compact: combined({ HEAD_SIZE: [12] }),
  top_k: combined({ LANES: [8, 64] }),
  matmul_back: [
    ...combined({ DTYPE: DTYPES, IN_QUADS: [1] }, [{ ROWS: 32, TOKENS: 32, LANE_ROWS: 4, LANE_TOKENS: 4 }]),
    ...combined({ DTYPE: DTYPES.slice(0, FLOAT_DTYPES.length), IN_QUADS: [0] }, [{ ROWS: 32, TOKENS: 32, LANE_ROWS: 4, LANE_TOKENS: 4 }]),
  ],
  rms_norm_back: combined({ LANES: [8, 64], HAS_WEIGHT: BOOLS }),
  layer_norm_back: combined({ LANES: [8, 64] }),
  glu_back: combined({ ACTIVATION: [0, 1, 2, 3, 4, 5, 6] }),
  map_back: combined({ FUNCTION: [1, 2, 2, 2, 2, 2, 2, 2], ACTIVATION: [0, 0, 1, 2, 3, 4, 5, 6] }),
  attention_dense: combined({ HAS_SINKS: BOOLS }),
  softmax_totals: combined({ LANES: [8, 64] }),
  glu: combined({ ACTIVATION: [0, 1, 2, 3, 4, 5, 6, 7] }),
  map: combined({ FUNCTION: [0, 1, 2, 2, 2, 2, 2, 2, 2, 2], ACTIVATION: [0, 0, 0, 1, 2, 3, 4, 5, 6, 7] }),
};

/**
 * `shapes` with `values` added: `[{NAME: value, …}, …]`, a value that is an object with all of its names, so that each shape and each value occurs; with `--long` every combination
 * of them, hundreds in all, of which a software adapter compiles about one in a second.
 */
function combined(values, shapes = [{}]) {
  if (!process.env.TIERFLOW_WEB_LONG) {
    const length = Math.max(shapes.length, ...Object.values(values).map((choices) => choices.length));
    const nth = (index) => Object.entries(values).map(([name, choices]) => named(name, choices[index % choices.length]));
    return Array.from({ length }, (_, index) => Object.assign({}, shapes[index % shapes.length], ...nth(index)));
  }
  const withAll = (list, [name, choices]) => list.flatMap((constants) => choices.map((value) => ({ ...constants, ...named(name, value) })));
  return Object.entries(values).reduce(withAll, shapes);
}

/** A constant by its name; several that belong together have names of their own. */
function named(name, value) {
  return typeof value === 'object' ? value : { [name]: value };
}

let browser;
let page;

before(async () => {
  browser = await start();
  page = await browser.context.newPage();
  await page.goto(new URL('/page/', browser.address).href);
  await page.evaluate(prepare);
});
after(() => browser.close());

/** Runs in the page: opens a device, and gives it what compiles a kernel and tells what the compiler says. */
async function prepare() {
  const wasm = await import(new URL('../wasm/tierflow.js', location.href).href);
  await wasm.default();
  const device = await (await navigator.gpu.requestAdapter()).requestDevice();
  const layoutOf = ({ params_bytes, bindings }) => {
    const entry = (binding, buffer) => ({ binding, visibility: GPUShaderStage.COMPUTE, buffer });
    const params = entry(0, { type: 'uniform', hasDynamicOffset: true, minBindingSize: params_bytes });
    const storage = bindings.map((access, index) => entry(index + 1, { type: access === 'read' ? 'read-only-storage' : 'storage' }));
    return device.createPipelineLayout({ bindGroupLayouts: [device.createBindGroupLayout({ entries: [params, ...storage] })] });
  };
  globalThis.kernels = JSON.parse(wasm.kernels());
  globalThis.compile = async (kernel, variants) => {
    const module = device.createShaderModule({ label: kernel.stem, code: kernel.wgsl });
    const { messages } = await module.getCompilationInfo();
    const errors = messages.filter(({ type }) => type === 'error').map(({ lineNum, linePos, message }) => `${kernel.stem}.wgsl:${lineNum}:${linePos}: ${message}`);
    if (errors.length > 0) return errors;
    const layout = layoutOf(kernel);
    const make = async (constants) => {
      const made = device.createComputePipelineAsync({ label: kernel.stem, layout, compute: { module, entryPoint: 'main', constants } });
      await made.catch((error) => errors.push(`${kernel.stem} with ${JSON.stringify(constants)}: ${error.message}`));
    };
    await Promise.all(variants.map(make));
    return errors;
  };
}

test('every shader compiles in the browser, in each variant that the engine makes of it', async () => {
  const kernels = await page.evaluate(() => globalThis.kernels.map(({ stem, bindings, wgsl }) => ({ stem, n_bindings: bindings.length, wgsl })));
  const compiled = new Set();
  for (const [index, { stem, wgsl }] of kernels.entries()) {
    if (NOT_IN_BROWSERS.includes(stem)) continue;
    // A kernel with several rows in the table computes as many products; the first row shows all variants.
    const variants = (VARIANTS[stem] ?? [{}]).slice(0, compiled.has(stem) && NOT_SHORT.skip ? 1 : Infinity);
    const overrides = [...wgsl.matchAll(/^override (\w+)/gm)].map(([, name]) => name);
    assert.deepEqual(Object.keys(variants[0]).sort(), overrides.sort(), `${stem}: its overrides and those that are tested`);
    const errors = await page.evaluate(([index, variants]) => globalThis.compile(globalThis.kernels[index], variants), [index, variants]);
    assert.deepEqual(errors, []);
    compiled.add(stem);
  }
  assert.equal(compiled.size + NOT_IN_BROWSERS.length, new Set(kernels.map(({ stem }) => stem)).size);
});

test('what naga accepts and the browser refuses is reported', async () => {
  // A barrier that not all lanes reach.
  const wgsl = `
    @group(0) @binding(1) var<storage, read_write> values: array<u32>;
    @compute @workgroup_size(8) fn main(@builtin(local_invocation_index) lane: u32) {
      if (values[lane] > 0u) { workgroupBarrier(); }
    }`;
  const errors = await page.evaluate((kernel) => globalThis.compile(kernel, [{}]), { stem: 'barrier', wgsl, params_bytes: 16, bindings: ['write'] });
  assert.match(errors.join(), /barrier\.wgsl:4:.*uniform control flow/);
});
