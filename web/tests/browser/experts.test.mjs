// A mixture of experts of which a third fits the GPU's budget: the others come from the browser's storage.

import assert from 'node:assert/strict';
import { readFileSync, statSync } from 'node:fs';
import { after } from 'node:test';

import { EXPERTS, ask, chooseFile, load, open, openPlan, planFor, start } from '../support/browser.mjs';
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

for (const expert_cache of ['off', 'on']) {
  test(`a mixture of experts with a third of its size on the GPU says what the native program says, cache ${expert_cache}`, async () => {
    const budget = Math.floor(statSync(EXPERTS).size / 3);
    const page = await open(browser);
    const found = await page.evaluate(
      async ({ url, budget, content, max_tokens, expert_cache }) => {
        const { Engine } = await import(new URL('../index.js', location.href).href);
        const engine = new Engine();
        await engine.load({ url, keep: true }, { device: 'gpu:0', max_memory: { 'gpu:0': budget, cpu: 4 << 20 }, ctx_size: 64, expert_cache, expert_misses: 'upload' });
        const { usage } = await engine.chat.completions.create({ messages: [{ role: 'user', content }], temperature: 0, max_tokens });
        const [gpu] = (await engine.memory()).devices.filter(({ device }) => device === 'gpu:0');
        const n_stored = engine.loaded.plan.chunks.filter(({ stored_on }) => stored_on === 'disk').length;
        return { tokens: usage.extra.tokens, n_prompt: usage.prompt_tokens, peak: gpu.peak, n_stored, experts: await engine.experts() };
      },
      { url: `${browser.server.address}/models/experts.gguf`, budget, content, max_tokens: tokens.length, expert_cache },
    );
    assert.deepEqual({ tokens: found.tokens, n_prompt: found.n_prompt }, { tokens, n_prompt: prompt.length });
    assert.ok(found.peak <= budget, `peak ${found.peak} of ${budget}`);
    assert.ok(found.n_stored > 0, 'parts of the model stay in storage');
    const sum = (count) => found.experts.reduce((all, layer) => all + layer[count], 0);
    if (expert_cache === 'on') assert.ok(sum('n_hits') > 0 && sum('n_misses') > 0 && sum('uploaded') > 0, JSON.stringify(found.experts));
    else assert.deepEqual(found.experts, []);
    assert.deepEqual(page.errors, []);
    await page.close();
  });
}

test('the page shows what the experts of an answer were asked for, layer by layer', async () => {
  const page = await open(browser);
  await chooseFile(page, EXPERTS);
  await page.waitForSelector('#load:enabled');
  await openPlan(page);
  await page.selectOption('#expert-cache', 'on');
  await planFor(page, Math.floor(statSync(EXPERTS).size / 3 / 2 ** 20) * 2 ** 20);
  await load(page);
  await ask(page, 'Why?', 2);
  await page.waitForSelector('#open-activity:enabled', { state: 'attached' });
  await page.click('#open-activity');
  await page.waitForSelector('#experts:not([hidden])');
  assert.match(await page.textContent('#experts-said'), /^\d+ % of \d+ experts were in the cache; .*iB were brought\.$/);
  assert.ok((await page.locator('#expert-layers rect').count()) > 0);
  assert.deepEqual(page.errors, []);
  await page.close();
});
