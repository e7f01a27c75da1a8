// What people do with a chat: the first try, Markdown, changing what was asked, going on, several conversations, links, a hub's
// repository, and all of it without a network.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { after } from 'node:test';

import { MODEL, TINY, answered, ask, askWithoutNetwork, chooseFile, chooseUrl, lastText, limitAnswers, load, loaded, open, openModels, screen, send, start } from '../support/browser.mjs';
import { before, test } from '../support/limited.mjs';

let browser;
let tiny;

before(async () => {
  browser = await start({ viewport: { width: 1280, height: 800 } });
  tiny = `${browser.server.address}/models/tiny-talk.gguf`;
});
after(() => browser.close());

const count = (page) => page.locator('#messages article').count();
const lastNode = (page, selector) => page.locator(`#messages article:last-child ${selector}`);

test('the first screen is painted within a second, and one press of its button leads to a chat; nothing is reported as an error', async () => {
  const page = await browser.context.newPage();
  const said = [];
  page.on('console', (message) => message.type() === 'error' && said.push(message.text()));
  page.on('pageerror', (error) => said.push(String(error)));
  // The button's model, at once.
  await page.route('**/models/SmolLM2*', (route) => (route.request().method() === 'HEAD' ? route.continue() : route.continue({ url: tiny })));
  await page.goto(new URL('/page/', browser.address).href);
  await page.waitForFunction(() => /SmolLM2, \d/.test(document.querySelector('#try').textContent));
  const paint = await page.evaluate(() => performance.getEntriesByName('first-contentful-paint')[0].startTime);
  assert.ok(paint < 1000, `${paint} ms`);
  await screen(page, 'web-start');
  await screen(page, 'web-phone', { width: 390, height: 844 });
  await page.click('#try');
  await loaded(page);
  assert.ok(await page.isVisible('.suggestions'));
  await limitAnswers(page, 3);
  await page.click('.suggestions button >> nth=0');
  await answered(page);
  assert.equal(await count(page), 2);
  assert.match(await page.textContent('#foot'), /^Remembers about [\d,]+ words/);
  assert.deepEqual(said, []);
  await page.close();
});

test('a message before any model loads the model that is chosen, and is answered', async () => {
  const page = await open(browser);
  await chooseUrl(page, tiny);
  await page.waitForSelector('#load:enabled');
  assert.match(await page.textContent('#fit'), /^Fits here, and runs on the processor: about \d+ words a second/);
  assert.match(await page.textContent('#memory-facts'), /^Remembers about [\d,]+ words of a conversation/);
  await limitAnswers(page, 3);
  await send(page, 'Hi');
  await page.press('#prompt', 'Enter');
  await answered(page);
  assert.equal(await count(page), 2, 'who presses twice has asked once');
  await page.close();
});

test('a conversation that is left while its answer comes is kept as far as that came; one that is deleted stays so', async () => {
  const page = await open(browser);
  page.on('dialog', (dialog) => dialog.accept());
  await chooseUrl(page, tiny);
  await page.waitForSelector('#load:enabled');
  await load(page);
  await limitAnswers(page, 400);
  await page.click('#open-chats');
  for (const [question, selector] of [['Left alone', '#new-chat'], ['Thrown away', '#chats button[aria-label="Delete “Thrown away”"]']]) {
    // In the page itself: a busy machine could be late by whole answers.
    await page.evaluate((selector) => {
      globalThis.hasPressed = false;
      const observer = new MutationObserver(() => {
        if (!(document.querySelector('#messages .assistant')?.message.content.length > 8)) return;
        observer.disconnect();
        document.querySelector(selector).click();
        globalThis.hasPressed = true;
      });
      observer.observe(document.querySelector('#messages'), { subtree: true, childList: true, characterData: true });
    }, selector);
    await send(page, question);
    await page.waitForFunction(() => globalThis.hasPressed && document.querySelector('#stop').disabled);
    assert.equal(await count(page), 0);
  }
  const titles = await page.$$eval('#chats .title', (nodes) => nodes.map(({ textContent }) => textContent));
  assert.ok(titles.includes('Left alone') && !titles.includes('Thrown away'), String(titles));
  await page.click('#chats .title:has-text("Left alone")');
  assert.equal(await count(page), 2);
  assert.equal(await lastNode(page, '.note').textContent(), 'Stopped.');
  assert.ok((await lastText(page)).length > 8);
  await page.close();
});

/** An answer as if the model had given it. */
async function replaceAnswer(page, text) {
  const id = await page.evaluate((content) => {
    const key = Object.keys(localStorage).find((name) => name.startsWith('tierflow.chat.') && location.hash.includes(name.split('.').pop()));
    const conversation = JSON.parse(localStorage.getItem(key));
    Object.assign(conversation.messages.at(-1), { content, reasoning: 'First I *think*.' });
    localStorage.setItem(key, JSON.stringify(conversation));
    return conversation.id;
  }, text);
  await page.reload();
  await loaded(page);
  return id;
}

test('answers are Markdown, in which no markup of the model’s lives; code is copied; reasoning is folded', async () => {
  const page = await open(browser);
  await page.context().grantPermissions(['clipboard-read', 'clipboard-write']);
  await chooseUrl(page, tiny);
  await page.waitForSelector('#load:enabled');
  await load(page);
  await ask(page, 'Hi', 2);
  const text = '# Title\n\nSome **bold**, <img src=x onerror="document.title=1"> and [a](javascript:document.title=2).\n\n```js\nlet a = 1 < 2;\n```\n\n| x | y |\n|---|---|\n| 1 | 2 |';
  await replaceAnswer(page, text);
  assert.equal(await lastText(page), text);
  const found = await lastNode(page, '.body').evaluate((body) => Object.fromEntries(['h4', 'strong', 'pre', 'td', 'img', 'a', 'script'].map((tag) => [tag, body.querySelectorAll(tag).length])));
  assert.deepEqual(found, { h4: 1, strong: 1, pre: 1, td: 2, img: 0, a: 0, script: 0 });
  await lastNode(page, '.copy-code').click();
  assert.equal(await page.evaluate(() => navigator.clipboard.readText()), 'let a = 1 < 2;');
  assert.equal(await lastNode(page, '.thought').isVisible(), false);
  await lastNode(page, '.reasoning summary').click();
  assert.equal(await lastNode(page, '.thought').textContent(), 'First I *think*.');
  assert.deepEqual(page.errors, []);
  await page.close();
});

test('an answer that was cut off goes on where it was, as one that was not cut', async () => {
  const page = await open(browser);
  await chooseUrl(page, tiny);
  await page.waitForSelector('#load:enabled');
  await load(page);
  await ask(page, 'Hello', 3);
  const begin = await lastText(page);
  await page.click('#go-on');
  await answered(page);
  const longer = await lastText(page);
  assert.ok(longer.startsWith(begin) && longer.length > begin.length, `${begin} / ${longer}`);
  assert.equal(await count(page), 2);
  await page.close();
});

test('a question that is changed is asked again; conversations are listed, opened, deleted, and saved as a file', async () => {
  const page = await open(browser);
  page.on('dialog', (dialog) => dialog.accept());
  await chooseUrl(page, tiny);
  await page.waitForSelector('#load:enabled');
  await load(page);
  await page.click('#show-options');
  await page.fill('#system', 'You are brief.');
  await page.press('#system', 'Tab');
  await ask(page, 'One', 2);
  await ask(page, 'Two', 2);
  await page.locator('#messages article:nth-child(1) .actions button', { hasText: 'Edit' }).click();
  await page.fill('#messages .edit textarea', 'Another one');
  await page.click('#messages .edit [type=submit]');
  await answered(page);
  assert.equal(await count(page), 2, 'what came behind it is gone');
  const [download] = await Promise.all([page.waitForEvent('download'), page.click('#open-chats').then(() => page.click('#export'))]);
  assert.match(readFileSync(await download.path(), 'utf8'), /^# Another one\n\n> You are brief\.\n\n## You\n\nAnother one\n\n## tiny-talk\.gguf\n\n/);

  await page.click('#new-chat');
  assert.equal(await count(page), 0);
  assert.equal(await page.inputValue('#system'), '');
  await ask(page, 'Second talk', 2);
  await page.click('#chats .title:has-text("Another one")');
  assert.match(await page.textContent('#messages article:first-child'), /Another one/);
  assert.equal(await page.inputValue('#system'), 'You are brief.');
  await page.goBack();
  await page.waitForFunction(() => document.querySelector('#messages article .body')?.textContent === 'Second talk');
  await page.click('#chats button[aria-label="Delete “Another one”"]');
  assert.equal(await page.locator('#chats .title:has-text("Another one")').count(), 0);
  assert.deepEqual(page.errors, []);
  await page.close();
});

test('a link leads to a model with its options; Back and Forward go between models; a local file is asked for again', async () => {
  const other = tiny.replace('talk', 'other');
  const page = await open(browser, `#model=${tiny}&context=256&device=cpu`);
  await page.waitForFunction(() => document.querySelector('#command').textContent.includes('--ctx-size 256'));
  assert.match(await page.textContent('#command'), /--device cpu/);
  // It is stored since the tests before, and loads by itself; then the page shows the chat.
  await page.waitForFunction(() => document.querySelector('#run-said').textContent.startsWith('Loaded'));
  await openModels(page);
  await chooseUrl(page, other);
  await page.waitForFunction(() => document.querySelector('#run-facts').textContent.includes('tiny-other'));
  await page.goBack();
  await page.waitForFunction(() => document.querySelector('#run-facts').textContent.includes('tiny-talk'));
  await page.goForward();
  await page.waitForFunction(() => document.querySelector('#run-facts').textContent.includes('tiny-other'));
  await openModels(page);
  await chooseFile(page, TINY);
  await page.waitForFunction(() => location.hash.includes('file=tiny.gguf'));
  await page.reload();
  await page.waitForFunction(() => document.querySelector('#run-said').textContent.startsWith('Choose tiny.gguf again'));
  await page.close();
});

test('a repository of the hub is listed, with what goes here and how fast, and one of its models is run', async () => {
  const page = await open(browser);
  const siblings = [['m-Q8_0.gguf', 237_216], ['m-Q4_K_M.gguf', 237_216], ['m-F16.gguf', 9e15], ['README.md', 10]].map(([rfilename, size]) => ({ rfilename, size }));
  await page.route('https://huggingface.co/**', (route) => {
    const { pathname } = new URL(route.request().url());
    const headers = { 'Access-Control-Allow-Origin': '*', 'Access-Control-Expose-Headers': 'Content-Range, ETag, Content-Length' };
    if (pathname.startsWith('/api/')) return route.fulfill({ status: pathname.includes('org/name/') ? 200 : 404, headers, json: { siblings } });
    const whole = readFileSync(TINY);
    const [, first, last] = /^bytes=(\d+)-(\d*)$/.exec(route.request().headers().range ?? '') ?? [];
    if (first === undefined) return route.fulfill({ status: 200, headers: { ...headers, ETag: '"1"' }, body: whole });
    const end = last ? Number(last) + 1 : whole.length;
    return route.fulfill({ status: 206, headers: { ...headers, 'Content-Range': `bytes ${first}-${end - 1}/${whole.length}` }, body: whole.subarray(Number(first), end) });
  });
  await chooseUrl(page, 'no/such');
  await page.waitForSelector('#model-error:not([hidden])');
  assert.match(await page.textContent('#model-error'), /no\/such: the hub answers 404/);
  await chooseUrl(page, 'hf:org/name');
  await page.waitForFunction(() => {
    const fits = [...document.querySelectorAll('#variants .fit')].map(({ textContent }) => textContent);
    return fits.length === 3 && !fits.some((words) => words === '…' || words === 'Predict');
  });
  const rows = await page.$$eval('#variants li', (list) => list.map((row) => [row.children[0].textContent, row.querySelector('.fit').textContent]));
  assert.deepEqual(rows.map(([quant]) => quant), ['Q4_K_M', 'Q8_0', 'F16']);
  assert.match(rows[0][1], /^fits, about \d+ words a second$/);
  assert.match(rows[2][1], /^does not fit here: the browser's storage has/);
  await page.click('#variants button[aria-label="Use Q4_K_M"]');
  await page.waitForSelector('#load:enabled');
  assert.match(page.url(), /#model=org\/name:Q4_K_M/);
  await load(page);
  assert.ok((await ask(page, 'Hi', 2)).length > 0);
  assert.match(await page.textContent('#run-facts'), /stored in this browser/);
  // What is stored is found by its name without the hub.
  await page.unroute('https://huggingface.co/**');
  await page.route('https://huggingface.co/**', (route) => route.abort());
  await page.reload();
  await loaded(page);
  await openModels(page);
  assert.match(await page.textContent('#stored'), /name Q4_K_M, 237 kB/);
  await page.close();
});

test('without a network the page opens again, and answers with the model that it kept', async () => {
  const own = await start({ serviceWorkers: 'allow' });
  try {
    const page = await open(own);
    await chooseUrl(page, `${own.server.address}/models/tiny.gguf`);
    await page.waitForSelector('#load:enabled');
    await load(page);
    await askWithoutNetwork(page, own.server);
    const manifest = await page.evaluate(async () => (await fetch(document.querySelector('link[rel=manifest]').href)).json());
    assert.equal(manifest.display, 'standalone');
    assert.deepEqual(page.errors, []);
    await page.close();
  } finally {
    await own.close();
  }
});

test('on a phone targets are large enough for fingers, and the box for messages is seen without scrolling', async () => {
  const page = await open(browser);
  await page.setViewportSize({ width: 390, height: 844 });
  const smallOf = () =>
    page.$$eval('button, input, select, summary', (nodes) =>
      nodes
        .filter((node) => node.checkVisibility() && !node.closest('.actions') && node.type !== 'checkbox')
        .map((node) => ({ id: node.id || node.className || node.textContent, box: node.getBoundingClientRect() }))
        .filter(({ box }) => box.height < 44 || box.width < 44)
        .map(({ id, box }) => `${id}: ${box.width} × ${box.height}`),
    );
  assert.deepEqual(await smallOf(), []);
  await chooseFile(page, MODEL);
  await page.waitForSelector('#load:enabled');
  assert.deepEqual(await smallOf(), []);
  const box = await page.locator('#prompt').boundingBox();
  assert.ok(box.y + box.height < 844, JSON.stringify(box));
  await page.close();
});
