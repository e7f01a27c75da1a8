// Planning in the page: from files, for other machines, without WebGPU, and what it says of files that are no models.

import assert from 'node:assert/strict';
import { closeSync, mkdtempSync, openSync, readSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after } from 'node:test';

import { MODEL, chooseFile, dropFile, figure, open, openPlan, picture, planFor, start } from '../support/browser.mjs';
import { before, test } from '../support/limited.mjs';
import { writeTinyFolder } from '../support/tiny-folder.mjs';

const folder = mkdtempSync(join(tmpdir(), 'tierflow-files-'));
let browser;

before(async () => (browser = await start()));
after(() => browser.close());

/** The first `length` bytes of the model as a file of its own. */
function beginning(length) {
  const bytes = Buffer.alloc(length);
  const file = openSync(MODEL, 'r');
  readSync(file, bytes, 0, length, 0);
  closeSync(file);
  const path = join(folder, `beginning-${length}.gguf`);
  writeFileSync(path, bytes);
  return path;
}

function written(name, text) {
  writeFileSync(join(folder, name), text);
  return join(folder, name);
}

test('a dropped file gives a plan from its headers alone; budgets, map, rates and command follow each other', async () => {
  const page = await open(browser);
  browser.server.requests.length = 0;
  await dropFile(page, MODEL);
  await planFor(page, undefined, { isClosed: false });
  assert.match(await page.textContent('#model-facts'), /134\.5 M parameters, 92\.1 MiB in 272 tensors.*30 layers/);
  const command = await page.textContent('#command');
  assert.match(command, /^tierflow run .*SmolLM2-135M-Instruct\.Q4_1\.gguf/);
  assert.match(command, /--max-memory gpu:0=40MiB/);
  assert.match(await figure(page, '#rates', 'Decode'), /t\/s$/);
  assert.match(await figure(page, '#rates', 'Bound by'), /^(compute|upload|disk)/);
  assert.match(await figure(page, '#rates', 'Streams'), /MiB$/);

  await page.fill('#host-budget .value input', '48 MiB');
  await page.press('#host-budget .value input', 'Enter');
  await page.waitForFunction(() => /cpu=/.test(document.querySelector('#command').textContent));
  await page.waitForSelector('[data-device="disk"]');
  assert.match(await page.textContent('#legend'), /stream from disk/);
  await picture(page, 'web-plan', '#rates', '#tiers', '#legend');
  await page.fill('#host-budget .value input', 'no limit');
  await page.press('#host-budget .value input', 'Enter');
  await page.waitForSelector('[data-device="disk"]', { state: 'detached' });

  await page.selectOption('#kv-dtype', 'q8_0');
  await page.waitForFunction(() => document.querySelector('#command').textContent.includes('--kv-dtype q8_0'));
  await page.fill('#gpu-budget .value input', '');
  await page.press('#gpu-budget .value input', 'Enter');
  await page.waitForFunction(() => !document.querySelector('#command').textContent.includes('--max-memory'));
  assert.equal(await figure(page, '#rates', 'Streams'), '0 B');
  assert.deepEqual(browser.server.requests.filter(({ path }) => path.includes('.gguf') && path.startsWith('/faulty')), []);
  assert.deepEqual(page.errors, []);
  await page.close();
});

test('a chosen folder of safetensors gives a plan', async () => {
  const page = await open(browser);
  writeTinyFolder(join(folder, 'tiny'));
  await page.setInputFiles('#folder', join(folder, 'tiny'));
  await page.waitForSelector('#load:enabled');
  assert.match(await page.textContent('#model-facts'), /2 layers, context 512/);
  assert.match(await page.textContent('#run-facts'), /^tiny, /);
  await page.close();
});

test('the bars are to one scale and hold what the plan says', async () => {
  const page = await open(browser);
  await chooseFile(page, MODEL);
  await planFor(page, undefined, { isClosed: false });
  const rows = await page.$$eval('#plan-table tbody tr', (list) => list.map((row) => [...row.children].map((cell) => cell.textContent)));
  assert.deepEqual(rows.map(([device]) => device), ['gpu:0', 'cpu', 'disk']);
  const widths = await page.$$eval('.tier .bar', (bars) =>
    bars.map((bar) => [...bar.querySelectorAll('rect')].filter((rect) => rect.querySelector('title')).reduce((sum, rect) => sum + rect.width.baseVal.value + 1, 0)),
  );
  const mib = (text) => (text.endsWith('MiB') ? Number.parseFloat(text) : 0);
  const used = rows.map((row) => mib(row[2])).filter((size) => size > 0);
  const scales = widths.map((width, index) => width / used[index]);
  assert.ok(Math.abs(scales[0] / scales[1] - 1) < 0.06, `pixels per MiB: ${scales}`);
  await page.close();
});

test('a devices file plans for another machine, on which nothing can be loaded', async () => {
  const page = await open(browser);
  const other = {
    schema: 'tierflow.devices/1',
    devices: [
      { device: 'gpu:0', name: 'Somebody’s GPU', kind: 'discrete', capacity: 8e9, limits: null },
      { device: 'cpu', name: 'Somebody’s CPU', kind: null, capacity: 16e9, limits: null },
    ],
  };
  await chooseFile(page, MODEL);
  await page.waitForSelector('#load:enabled');
  await dropFile(page, written('machine.json', JSON.stringify(other)));
  await page.waitForFunction(() => document.querySelector('#tiers').textContent.includes('Somebody’s GPU'));
  assert.equal(await page.isDisabled('#load'), true);
  await page.setInputFiles('#devices-file', written('bad.json', '{"schema": "tierflow.devices/1"}'));
  await page.waitForSelector('#plan-error:not([hidden])');
  assert.match(await page.textContent('#plan-error'), /bad\.json.*devices --json/);
  await page.click('#own-devices');
  await page.waitForFunction(() => !document.querySelector('#tiers').textContent.includes('Somebody'));
  assert.equal(await page.isDisabled('#load'), false);
  await page.close();
});

test('a budget that is too small says how much is needed, and one press takes it', async () => {
  const page = await open(browser);
  await chooseFile(page, MODEL);
  await planFor(page, undefined, { isClosed: false });
  await page.fill('#gpu-budget .value input', '2 MiB');
  await page.press('#gpu-budget .value input', 'Enter');
  await page.waitForSelector('#plan-error button');
  assert.match(await page.textContent('#plan-error'), /does not fit gpu:0: needs at least/);
  assert.equal(await page.isDisabled('#load'), true);
  await picture(page, 'web-does-not-fit', '#plan-panel');
  await page.click('#plan-error button');
  await page.waitForSelector('#plan-error', { state: 'hidden' });
  assert.equal(await page.isDisabled('#load'), false);
  await page.close();
});

test('files that are no models, or only the beginning of one, are refused with their name', async () => {
  const page = await open(browser);
  for (const [path, words] of [
    [written('notes.gguf', 'these are notes, not a model'), /notes\.gguf/],
    [written('empty.gguf', ''), /empty\.gguf/],
    [beginning(1 << 20), /beginning-1048576\.gguf/],
    [beginning(60 << 20), /beginning-62914560\.gguf/],
  ]) {
    await chooseFile(page, path);
    await page.waitForFunction((name) => document.querySelector('#model-error').textContent.includes(name), path.split('/').pop());
    assert.match(await page.textContent('#model-error'), words);
    assert.equal(await page.$eval('#plan', (plan) => plan.hidden), true);
  }
  await chooseFile(page, MODEL);
  await page.waitForSelector('#load:enabled');
  assert.equal(await page.isVisible('#model-error'), false);
  assert.deepEqual(page.errors, []);
  await page.close();
});

test('without an adapter the page says which step failed, and plans all the same', async () => {
  const without = await start({ webgpu: false });
  try {
    const page = await open(without);
    assert.match(await page.textContent('#webgpu'), /no adapter.*step that failed: requestAdapter/);
    await page.click('#machine-short');
    await picture(page, 'web-no-webgpu', '.hero', '#machine-details');
    await chooseFile(page, MODEL);
    await openPlan(page);
    const devices = await page.$$eval('.tier h3', (titles) => titles.map((title) => title.textContent.split(/\s/)[0]));
    assert.ok(devices.includes('cpu') && !devices.includes('gpu:0'), String(devices));
    const older = await without.context.newPage();
    await older.addInitScript(() => Object.defineProperty(Navigator.prototype, 'gpu', { value: undefined }));
    await older.goto(page.url());
    await older.waitForFunction(() => document.querySelector('#webgpu').textContent.includes('step that failed: navigator.gpu'));
  } finally {
    await without.close();
  }
});
