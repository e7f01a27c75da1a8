// A model of some gigabytes under budgets that hold an eighth of it: `node tests/run.mjs --large FOLDER` with the folder of a
// safetensors model, such as `cargo xtask make-model FOLDER --preset 1b --dtype bf16 --shards 3` makes. A software adapter takes
// minutes for it.

import assert from 'node:assert/strict';
import { readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { after } from 'node:test';

import { open, start } from '../support/browser.mjs';
import { before, test } from '../support/limited.mjs';

const FOLDER = process.env.TIERFLOW_WEB_LARGE;
const MIB = 2 ** 20;
const BUDGETS = { 'gpu:0': 256 * MIB, cpu: 64 * MIB };
const MOST_WASM = 512 * MIB;
const N_TOKENS = 2;

const parts = readdirSync(FOLDER).filter((name) => /\.(json|safetensors|jinja)$/.test(name));
const weights = parts.filter((name) => name.endsWith('.safetensors')).reduce((sum, name) => sum + statSync(join(FOLDER, name)).size, 0);
let browser;

before(async () => (browser = await start()));
after(() => browser.close());

/** Loads the model, kept in the browser's storage or not, and has it say a few tokens. */
async function run(keep) {
  const page = await open(browser);
  const sources = parts.map((name) => ({ url: `${browser.server.address}/large/${name}`, name, keep }));
  const result = await page.evaluate(
    async ({ sources, max_memory, max_tokens }) => {
      const { Engine } = await import(new URL('../index.js', location.href).href);
      const engine = new Engine();
      const begin = performance.now();
      const { plan } = await engine.load(sources, { device: 'gpu:0', max_memory, ctx_size: 64 });
      const load_secs = (performance.now() - begin) / 1000;
      const { usage } = await engine.chat.completions.create({ messages: [{ role: 'user', content: 'a' }], temperature: 0, max_tokens });
      const { summary } = await engine.trace();
      return { load_secs, usage, summary, memory: await engine.memory(), streamed: plan.devices.find(({ device }) => device === 'disk').streamed_bytes };
    },
    { sources, max_memory: BUDGETS, max_tokens: N_TOKENS },
  );
  await page.close();
  return result;
}

for (const [keep, place] of [
  [false, 'a server with ranges'],
  [true, "the browser's storage"],
]) {
  test(`a model of ${(weights / 1e9).toFixed(1)} GB that streams from ${place} answers within its budgets`, async () => {
    const { load_secs, usage, memory, streamed } = await run(keep);
    const gpu = memory.devices.find(({ device }) => device === 'gpu:0');
    assert.equal(usage.extra.tokens.length, N_TOKENS);
    assert.ok(streamed > 0.8 * weights, `${streamed} bytes stream at every token`);
    assert.ok(gpu.peak <= BUDGETS['gpu:0'], `the GPU's peak is ${gpu.peak}`);
    assert.ok(memory.wasm_bytes < MOST_WASM, `wasm memory is ${memory.wasm_bytes}`);
    const { ttft_secs, decode_secs, tokens } = usage.extra;
    const mib = (size) => `${(size / MIB).toFixed(1)} MiB`;
    console.log(`# loaded in ${load_secs.toFixed(1)} s, ${usage.prompt_tokens} tokens of prompt, the first answered after ${ttft_secs.toFixed(1)} s, the rest after ${decode_secs.toFixed(1)} s: ${tokens}`);
    console.log(`# ${mib(streamed)} stream at every token; GPU peak ${mib(gpu.peak)} of ${mib(gpu.budget)}, wasm ${mib(memory.wasm_bytes)}`);
  });
}
