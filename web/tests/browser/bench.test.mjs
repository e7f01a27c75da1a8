// The bench page: it runs a model on each device, fills its table, gives the same as JSON, and says what went wrong.

import assert from 'node:assert/strict';
import { after } from 'node:test';

import { start } from '../support/browser.mjs';
import { before, test } from '../support/limited.mjs';

let browser;

before(async () => (browser = await start()));
after(() => browser.close());

/** The page with that model asked for. */
async function openBench(model) {
  const page = await browser.context.newPage();
  page.errors = [];
  page.on('pageerror', (error) => page.errors.push(String(error)));
  await page.goto(new URL(`/page/bench.html?model=${encodeURIComponent(`${browser.server.address}/models/${model}`)}`, browser.address).href);
  return page;
}

test('the processor and the adapter are measured in turns, as a table and as JSON', async () => {
  const page = await openBench('tiny.gguf');
  for (const [field, value] of [['#n-words', 20], ['#n-tokens', 8], ['#n-rounds', 2]]) await page.fill(field, String(value));
  await page.click('#run');
  await page.waitForSelector('#found:not([hidden])');
  const rows = await page.$$eval('#rates tbody tr', (nodes) => nodes.map((node) => [...node.children].map(({ textContent }) => textContent)));
  assert.deepEqual(rows.map(([device]) => device.split(',')[0]), ['cpu', 'gpu:0']);
  for (const [, prompt, answer] of rows) assert.ok(/^[\d.]+ t\/s$/.test(prompt) && /^[\d.]+ t\/s$/.test(answer), `${prompt} ${answer}`);
  const { runs, devices, n_tokens } = JSON.parse(await page.textContent('#json'));
  assert.deepEqual(runs.map(({ device, round }) => `${device} ${round}`), ['cpu 1', 'gpu:0 1', 'cpu 2', 'gpu:0 2']);
  for (const { n_read, n_decoded, prompt_secs, decode_secs } of runs) {
    assert.ok(n_read > 20 && n_decoded > 0 && n_decoded < n_tokens && prompt_secs > 0 && decode_secs > 0, JSON.stringify(runs));
  }
  for (const { device, decode_ts } of devices) assert.ok(runs.some((run) => run.device === device && run.decode_ts === decode_ts));
  assert.deepEqual(page.errors, []);
  await page.close();
});

test('a run that is stopped, and a model that is not there, are said', async () => {
  const page = await openBench('tiny.gguf');
  await page.fill('#n-rounds', '99');
  await page.click('#run');
  await page.waitForFunction(() => document.querySelector('#said').textContent.includes('round'));
  await page.click('#stop');
  await page.waitForSelector('#run:enabled');
  assert.deepEqual([await page.textContent('#said'), await page.isVisible('#error'), await page.isVisible('#found')], ['Stopped.', false, false]);
  await page.fill('#source', `${browser.server.address}/nothing.gguf`);
  await page.click('#run');
  await page.waitForFunction(() => document.querySelector('#error').textContent.includes('nothing.gguf'));
  assert.deepEqual(page.errors, []);
  await page.close();
});
