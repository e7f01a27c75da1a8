// The conversation in the page: what does not fit, what is cut off, what is under way, and what computes.

import assert from 'node:assert/strict';
import { mkdtempSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after } from 'node:test';

import { TINY, ask, chooseFile, chooseUrl, closePanel, figure, limitAnswers, load, open, openPlan, send, start } from '../support/browser.mjs';
import { before, test } from '../support/limited.mjs';

let browser;

before(async () => (browser = await start()));
after(() => browser.close());

/** A page in which the tiny model is loaded on the processor, with a context of so many positions. */
async function loaded(context) {
  const page = await open(browser);
  await chooseFile(page, TINY);
  await openPlan(page);
  await page.selectOption('#device', 'cpu');
  await page.fill('#context .value input', String(context));
  await page.press('#context .value input', 'Enter');
  await page.waitForFunction((size) => document.querySelector('#command').textContent.includes(`--ctx-size ${size}`), context);
  await closePanel(page);
  await load(page);
  return page;
}

const note = (page) => page.evaluate(() => document.querySelector('#messages article:last-child .note').textContent);

test('a message that is longer than the context goes back to the box, and the conversation goes on', async () => {
  const page = await loaded(128);
  const first = await ask(page, 'Hi', 3);
  const long = 'word '.repeat(200).trim();
  await send(page, long);
  await page.waitForSelector('#chat-error:not([hidden])');
  assert.match(await page.textContent('#chat-error'), /^The context is full\. What was said comes to \d+ tokens, and the context holds 128/);
  await page.waitForFunction(() => document.querySelector('#stop').disabled);
  assert.equal(await page.inputValue('#prompt'), long);
  assert.equal(await page.locator('#messages article').count(), 2, 'what was not answered is not part of what was said');
  assert.ok((await ask(page, 'Ho', 3)).length > 0);
  assert.equal(await page.isVisible('#chat-error'), false);
  await page.click('#new-chat');
  assert.equal(await ask(page, 'Hi', 3), first);
  assert.deepEqual(page.errors, []);
  await page.close();
});

test('an answer that is cut off says why, and the figures are its own', async () => {
  const page = await loaded(128);
  await ask(page, 'Hi', 5);
  assert.equal(await note(page), 'Cut off after 5 tokens, the most that are asked for.');
  assert.equal(await figure(page, '#speed', 'Tokens'), '5');
  await page.click('#new-chat');
  await ask(page, 'Hi', 4000);
  const words = await note(page);
  const n = Number(/^Cut off after (\d+) tokens: the context is full\.$/.exec(words)?.[1]);
  assert.ok(n > 5, words);
  assert.equal(await figure(page, '#speed', 'Tokens'), String(n), 'tokens are counted, not pieces of text');
  await page.close();
});

test('a stop says so; the progress of a prompt stands where its answer will be, beside no figures of the last', async () => {
  const page = await loaded(512);
  await ask(page, 'Hi', 3);
  await page.evaluate(() => {
    const messages = document.querySelector('#messages');
    globalThis.seen = [];
    const observer = new MutationObserver(() => {
      const last = messages.lastElementChild;
      if (messages.children.length < 4) return;
      const figures = Object.fromEntries([...document.querySelectorAll('#speed > div')].map(({ children }) => [children[0].textContent, children[1].textContent]));
      globalThis.seen.push({ note: last.querySelector('.note').textContent, text: last.message.content, figures });
      if (last.message.content.length < 4) return;
      observer.disconnect();
      document.querySelector('#stop').click();
    });
    observer.observe(messages, { subtree: true, childList: true, characterData: true });
  });
  await limitAnswers(page, 400);
  await send(page, 'word '.repeat(40));
  await page.waitForFunction(() => document.querySelector('#stop').disabled && document.querySelectorAll('#messages article').length === 4);
  assert.equal(await note(page), 'Stopped.');
  const reading = (await page.evaluate(() => globalThis.seen)).filter(({ note }) => /^Reading the prompt: \d+ of \d+ tokens$/.test(note));
  assert.ok(reading.length > 0);
  for (const { text, figures } of reading) assert.deepEqual([text, figures.Decode, figures.Tokens], ['', '…', '0']);
  await page.close();
});

test('with an adapter that is software, header, plan and load say that the processor computes', async () => {
  const page = await open(browser);
  assert.match(await page.textContent('#webgpu'), /^The processor computes here, unless a plan says otherwise: the adapter that WebGPU offers, .* is software/);
  await chooseFile(page, TINY);
  await page.waitForSelector('#rates dd', { state: 'attached' });
  assert.equal(await figure(page, '#rates', 'Computes'), 'cpu');
  await load(page);
  assert.match(await page.textContent('#run-said'), /; cpu will compute\.$/);
  await page.close();
});

test('a file that is no model leaves nothing of the former model’s plan beside its error', async () => {
  const page = await open(browser);
  await chooseFile(page, TINY);
  await openPlan(page);
  const isGone = async () => [await page.$eval('#plan', (plan) => plan.hidden), !(await page.isVisible('#run'))];
  const notes = join(mkdtempSync(join(tmpdir(), 'tierflow-notes-')), 'notes.gguf');
  writeFileSync(notes, 'no model');
  await chooseFile(page, notes);
  await page.waitForSelector('#model-error:not([hidden])');
  assert.deepEqual(await isGone(), [true, true]);
  assert.equal(await page.textContent('#model-facts'), '');
  await chooseFile(page, TINY);
  await page.waitForSelector('#load:enabled');
  assert.deepEqual(await isGone(), [false, false]);
  await page.close();
});

test('the address of the folder leads to the page; what an address asks of the server is no part of a name', async () => {
  const page = await browser.context.newPage();
  await page.goto(`${browser.address}/`);
  await page.waitForURL('**/page/');
  await page.waitForFunction(() => !document.querySelector('#webgpu').textContent.startsWith('Asking'));
  await chooseUrl(page, `${browser.server.address}/models/tiny-asked.gguf?download=true`);
  await page.waitForSelector('#load:enabled');
  assert.match(await page.textContent('#run-facts'), /^tiny-asked\.gguf, /);
  await page.close();
});
