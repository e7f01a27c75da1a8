// The page for everybody: keyboard alone, a screen reader's view, phones and zoom, light and dark.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { after } from 'node:test';

import { MODEL, TINY, ask, chooseFile, closePanel, load, open, openPlan, planFor, start } from '../support/browser.mjs';
import { before, test } from '../support/limited.mjs';

const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
let browser;

before(async () => (browser = await start()));
after(() => browser.close());

/** All violations that axe finds on the page as it is. */
async function violationsOn(page) {
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ['violations'] }));
  return violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html).join(' | ')}`);
}

for (const colorScheme of ['light', 'dark']) {
  test(`axe finds no violation on the empty page, with a plan, with an error and with a model, ${colorScheme}`, async () => {
    const page = await open(browser);
    await page.emulateMedia({ colorScheme });
    assert.deepEqual(await violationsOn(page), []);
    await chooseFile(page, TINY);
    await page.waitForSelector('#load:enabled');
    assert.deepEqual(await violationsOn(page), []);
    await planFor(page, undefined, { isClosed: false });
    await page.click('#planned summary >> nth=0');
    assert.deepEqual(await violationsOn(page), []);
    await page.fill('#gpu-budget .value input', '1 KiB');
    await page.press('#gpu-budget .value input', 'Enter');
    await page.waitForSelector('#plan-error button');
    assert.deepEqual(await violationsOn(page), []);
    await planFor(page);
    await page.waitForSelector('#load:enabled');
    await load(page);
    assert.deepEqual(await violationsOn(page), []);
    await ask(page, 'Hello', 2);
    assert.deepEqual(await violationsOn(page), []);
    await page.click('#open-chats');
    assert.deepEqual(await violationsOn(page), []);
    await page.waitForSelector('#open-activity:enabled', { state: 'attached' });
    await page.click('#open-activity');
    await page.waitForSelector('#timeline:not([hidden])');
    assert.deepEqual(await violationsOn(page), []);
    await page.click('#open-teach');
    await page.click('#teach-panel summary');
    assert.deepEqual(await violationsOn(page), []);
    await page.close();
  });
}

test('axe finds no violation on the bench page, before and after a run', async () => {
  const page = await browser.context.newPage();
  await page.goto(new URL(`/page/bench.html?model=${encodeURIComponent(`${browser.server.address}/models/tiny.gguf`)}`, browser.address).href);
  assert.deepEqual(await violationsOn(page), []);
  for (const [field, value] of [['#n-words', 8], ['#n-tokens', 2], ['#n-rounds', 1]]) await page.fill(field, String(value));
  await page.click('#run');
  await page.waitForSelector('#found:not([hidden])');
  await page.click('#found summary');
  assert.deepEqual(await violationsOn(page), []);
  await page.close();
});

test('the keyboard alone chooses, plans, loads, asks and stops', async () => {
  const page = await open(browser);
  const focused = () => page.evaluate(() => document.activeElement.id || document.activeElement.className || document.activeElement.getAttribute('aria-label'));
  /** Goes on by Tab until an element has the focus. */
  const tabTo = async (wanted) => {
    for (let step = 0; step < 60; step += 1) {
      await page.keyboard.press('Tab');
      if ((await focused()) === wanted) return;
    }
    throw new Error(`${wanted} cannot be reached by Tab`);
  };
  await tabTo('url');
  await page.keyboard.type(new URL(`${browser.server.address}/models/keyboard.gguf`).href);
  await page.keyboard.press('Enter');
  await page.waitForSelector('#open-plan:enabled');
  await tabTo('show-plan');
  await page.keyboard.press('Enter');
  await page.waitForSelector('#rates dd');
  await tabTo('gpu-budget-range');
  const before = await page.inputValue('#gpu-budget .value input');
  await page.keyboard.press('ArrowLeft');
  assert.notEqual(await page.inputValue('#gpu-budget .value input'), before);
  await tabTo('device');
  await page.keyboard.type('gpu');
  await page.waitForFunction(() => document.querySelector('#device').value === 'gpu:0');
  await page.waitForFunction(() => document.querySelector('#command').textContent.includes('--device gpu'));
  await page.waitForSelector('#load:enabled', { state: 'attached' });
  await tabTo('bar');
  await page.keyboard.press('ArrowRight');
  assert.match(await page.textContent('#block'), /^gpu:0: .*computed by gpu:0/);
  await page.keyboard.press('Escape');
  await page.waitForSelector('#plan-panel', { state: 'hidden' });
  await tabTo('load');
  await page.keyboard.press('Enter');
  await page.waitForFunction(() => !document.querySelector('#unload').hidden);
  await page.waitForFunction(() => document.activeElement.id === 'prompt');
  await page.keyboard.type('Tell me a story');
  await page.keyboard.press('Enter');
  await page.waitForFunction(() => !document.querySelector('#stop').disabled);
  await tabTo('stop');
  await page.keyboard.press('Enter');
  await page.waitForFunction(() => document.querySelector('#stop').disabled);
  await page.waitForFunction(() => document.activeElement.id === 'prompt');
  assert.deepEqual(page.errors, []);
  await page.close();
});

test('on a phone, and at 200 % zoom, nothing is cut off sideways', async () => {
  const page = await open(browser);
  await chooseFile(page, MODEL);
  await planFor(page);
  for (const width of [320, 360, 640]) {
    await page.setViewportSize({ width, height: 740 });
    await page.waitForTimeout(200);
    const isWhole = async () => {
      const [needed, there] = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
      assert.ok(needed <= there, `${needed} at ${there}`);
    };
    await isWhole();
    await openPlan(page);
    await isWhole();
    await closePanel(page);
  }
  await page.close();
});
