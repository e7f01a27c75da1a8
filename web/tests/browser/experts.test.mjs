// A mixture of experts of which a third fits the GPU's budget: the others come from the browser's storage.

import assert from 'node:assert/strict';
import { readFileSync, statSync } from 'node:fs';
import { after } from 'node:test';

import { EXPERTS, open, start } from '../support/browser.mjs';
import { before, test } from '../support/limited.mjs';

/** What the native program answers: `tests/engine/experts.rs` holds it to this file. */
const { content, prompt, tokens: all } = JSON.parse(readFileSync(new URL('../support/experts.json', import.meta.url)));
/** So many as a software adapter computes in half a minute. */
const tokens = all.slice(0, 6);
let browser;

before(async () => {
  browser = await start();
});
after(() => browser.close());

test('a mixture of experts with a third of its size on the GPU says what the native program says', async () => {
  const budget = Math.floor(statSync(EXPERTS).size / 3);
  const page = await open(browser);
  const found = await page.evaluate(
    async ({ url, budget, content, max_tokens }) => {
      const { Engine } = await import(new URL('../index.js', location.href).href);
      const engine = new Engine();
      await engine.load({ url, keep: true }, { device: 'gpu:0', max_memory: { 'gpu:0': budget, cpu: 4 << 20 }, ctx_size: 64 });
      const { usage } = await engine.chat.completions.create({ messages: [{ role: 'user', content }], temperature: 0, max_tokens });
      const [gpu] = (await engine.memory()).devices.filter(({ device }) => device === 'gpu:0');
      const [disk] = engine.loaded.plan.devices.filter(({ device }) => device === 'disk');
      return { tokens: usage.extra.tokens, n_prompt: usage.prompt_tokens, peak: gpu.peak, n_stored: disk.n_units };
    },
    { url: `${browser.server.address}/models/experts.gguf`, budget, content, max_tokens: tokens.length },
  );
  assert.deepEqual({ tokens: found.tokens, n_prompt: found.n_prompt }, { tokens, n_prompt: prompt.length });
  assert.ok(found.peak <= budget, `peak ${found.peak} of ${budget}`);
  assert.ok(found.n_stored > 0, 'parts of the model stay in storage');
  assert.deepEqual(page.errors, []);
  await page.close();
});
