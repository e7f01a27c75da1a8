// A browser with the page in it, and the steps that several tests take.

import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { chromium } from 'playwright-core';

import { orAfter, watch } from './limited.mjs';
import { serve } from './server.mjs';

const DIST = join(dirname(fileURLToPath(import.meta.url)), '../../dist');
const ARGUMENTS = [
  '--no-sandbox',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
];
/** Gives Chromium its software adapter. */
const WEBGPU = '--enable-unsafe-webgpu';

/** The small model, for what it says. */
export const MODEL = process.env.TIERFLOW_WEB_MODEL;
/** A model of some hundred kilobytes with random weights, for everything else. */
export const TINY = process.env.TIERFLOW_WEB_TINY;
/** A mixture of experts with random weights. */
export const EXPERTS = process.env.TIERFLOW_WEB_EXPERTS;
/** The native program, to compare with. */
export const PROGRAM = process.env.TIERFLOW_WEB_PROGRAM;
/** For tests that are left out of the short selection. */
export const NOT_SHORT = { skip: process.env.TIERFLOW_WEB_SHORT ? 'left out by --short' : false };
/** The budget of the tests, less than half of the model. */
export const BUDGET = 40 * 2 ** 20;
/** A browser that takes longer than this to end does not end by itself. */
const CLOSE_MS = 20_000;

const POLL_MS = 50;

/** Pictures are narrow, so that their files stay small. */
const PICTURE_WIDTH = 600;

/**
 * Starts a server and a browser with a profile of its own.
 * @param {{webgpu?: boolean, flags?: string[], viewport?: {width: number, height: number}, serviceWorkers?: 'allow' | 'block', isolated?: boolean, scripts?: Record<string, string>}} [options]
 *   `flags` are Chromium's; pages that are `isolated` may share memory; `scripts` are served beside the files, by their paths
 */
export async function start({ webgpu = true, flags = [], viewport = { width: 720, height: 900 }, serviceWorkers = 'block', isolated = false, scripts } = {}) {
  const server = await serve({ isolated, scripts, folder: DIST, model: MODEL, tiny: TINY, experts: EXPERTS, large: process.env.TIERFLOW_WEB_LARGE });
  const address = process.env.TIERFLOW_WEB_ADDRESS || server.address;
  const profile = mkdtempSync(join(tmpdir(), 'tierflow-browser-'));
  const context = await chromium.launchPersistentContext(profile, {
    executablePath: process.env.TIERFLOW_WEB_CHROMIUM,
    headless: true,
    args: [...ARGUMENTS, ...(webgpu ? [WEBGPU] : []), ...flags],
    acceptDownloads: true,
    serviceWorkers,
    viewport,
  });
  const pid = await pidOf(context.browser());
  await watch(context);
  const close = async () => {
    const hasEnded = await orAfter(CLOSE_MS, context.close().then(() => true), false);
    if (!hasEnded) process.kill(pid, 'SIGKILL');
    server.close();
    rmSync(profile, { recursive: true, force: true, maxRetries: 5 });
    if (!hasEnded) throw new Error(`the browser did not end within ${CLOSE_MS / 1000} s`);
  };
  return { server, address, context, close };
}

/** The browser's own process; those that it has started end with it. */
async function pidOf(browser) {
  const session = await browser.newBrowserCDPSession();
  const { processInfo } = await session.send('SystemInfo.getProcessInfo');
  await session.detach();
  return processInfo.find(({ type }) => type === 'browser').id;
}

/** A new page, at what `hash` leads to; what it reports as an error ends up in `page.errors`. */
export async function open({ context, address }, hash = '') {
  const page = await context.newPage();
  page.errors = [];
  page.on('pageerror', (error) => page.errors.push(String(error)));
  await page.goto(new URL(`/page/${hash}`, address).href);
  await page.waitForFunction(() => !document.querySelector('#webgpu').textContent.startsWith('Asking'));
  return page;
}

/** A page with nothing in it, so that all its workers are those of the test's engines; what it reports as an error ends up in `page.errors`. */
export async function blank({ context, address }) {
  const page = await context.newPage();
  page.errors = [];
  page.on('pageerror', (error) => page.errors.push(String(error)));
  await page.goto(new URL('/page/manifest.json', address).href);
  return page;
}

/** Waits until a page has so many workers, of which the test's driver learns a moment later. */
export async function hasWorkers(page, n) {
  while (page.workers().length !== n) await page.waitForTimeout(POLL_MS);
}

/** Runs `work` in a page with the package, which reports no error: `work(tierflow, argument)`. */
export async function runInPage(browser, work, argument) {
  const page = await open(browser);
  const run = `async (argument) => (${work})(await import(new URL('../index.js', location.href).href), argument)`;
  const result = await page.evaluate(`(${run})(${JSON.stringify(argument)})`);
  assert.deepEqual(page.errors, []);
  await page.close();
  return result;
}

/** Chooses a local file through the page's own input. */
export async function chooseFile(page, path) {
  await page.setInputFiles('#file', path);
}

/** Drops a file on the page as a person would: the event carries it. */
export async function dropFile(page, path) {
  await page.evaluate(() => document.body.append(Object.assign(document.createElement('input'), { type: 'file', id: 'from-test', hidden: true })));
  await page.setInputFiles('#from-test', path);
  await page.evaluate(() => {
    const transfer = new DataTransfer();
    transfer.items.add(document.querySelector('#from-test').files[0]);
    document.querySelector('#from-test').remove();
    document.querySelector('#drop').dispatchEvent(new DragEvent('drop', { bubbles: true, cancelable: true, dataTransfer: transfer }));
  });
}

/** Types an address and asks for its headers. */
export async function chooseUrl(page, url) {
  await page.fill('#url', url);
  await page.click('#url-form button');
}

/** Opens the panel with the plan, once there is one. */
export async function openPlan(page) {
  await page.waitForSelector('#rates dd', { state: 'attached' });
  if (!(await page.isVisible('#plan-panel'))) await page.click('#open-plan');
  await page.waitForSelector('#options');
}

/** Closes whatever panel is open: on a narrow page it takes the place of all else. */
export async function closePanel(page) {
  await page.click('.panel:not([hidden]) .close');
}

/** Shows the models and what can be done with them, in place of the chat. */
export async function openModels(page) {
  if (!(await page.isVisible('#start'))) await page.click('#open-models');
}

/** Sets the budget of the GPU, to compute on it although it is software, and waits for that plan. */
export async function planFor(page, budget = BUDGET, { isClosed = true } = {}) {
  await openPlan(page);
  await page.selectOption('#device', 'gpu:0');
  await page.fill('#gpu-budget .value input', String(budget));
  await page.press('#gpu-budget .value input', 'Enter');
  await page.waitForFunction((size) => document.querySelector('#tiers').textContent.includes(`of ${size}`), `${(budget / 2 ** 20).toFixed(1)} MiB`);
  if (isClosed) await closePanel(page);
}

/** Waits until a model is loaded, or why it is not is said. */
export async function loaded(page) {
  await page.waitForFunction(() => !document.querySelector('#unload').hidden || !document.querySelector('#run-error').hidden);
}

/** Loads what is planned, and waits until it can be talked to. */
export async function load(page) {
  await page.click('#load');
  await loaded(page);
  if (await page.isVisible('#run-error')) throw new Error(await page.textContent('#run-error'));
}

/** Sets how long answers may be; they are made of the likeliest tokens, so that they are the same each time. */
export async function limitAnswers(page, maxTokens) {
  if (!(await page.isVisible('#chat-options'))) await page.click('#show-options');
  await page.fill('#max-tokens', String(maxTokens));
  await page.fill('#temperature', '0');
}

/** Writes a message and sends it. */
export async function send(page, text) {
  await page.fill('#prompt', text);
  await page.press('#prompt', 'Enter');
}

/** Waits until no answer is under way, and there is one. */
export async function answered(page) {
  await page.waitForFunction(() => document.querySelector('#stop').disabled && document.querySelector('#messages .assistant') !== null);
}

/** Sends a message, and waits for the answer's end. */
export async function ask(page, text, maxTokens) {
  await limitAnswers(page, maxTokens);
  await send(page, text);
  await answered(page);
  return lastText(page);
}

/** With a kept model that is loaded: asks, ends the network with its server, opens the page again, and asks the same in a new conversation. */
export async function askWithoutNetwork(page, server) {
  const answer = await ask(page, 'Hello', 4);
  await page.waitForFunction(() => navigator.serviceWorker.controller !== null);
  server.close();
  await page.reload();
  await loaded(page);
  assert.equal(await lastText(page), answer);
  await page.click('#new-chat');
  assert.equal(await ask(page, 'Hello', 4), answer);
}

/** What the last message says, as the model wrote it. */
export function lastText(page) {
  return page.evaluate(() => document.querySelector('#messages article:last-child').message.content);
}

/** What the page shows under a term, such as `Decode`. */
export async function figure(page, list, term) {
  const pairs = await page.$$eval(`${list} > div`, (items) => items.map((item) => [item.children[0].textContent, item.children[1].textContent]));
  return pairs.find(([name]) => name.startsWith(term))?.[1];
}

/** Saves a small screenshot of some of the page's sections, which follow each other, if pictures were asked for. */
export async function picture(page, name, ...sections) {
  const folder = process.env.TIERFLOW_WEB_PICTURES;
  if (!folder) return;
  mkdirSync(folder, { recursive: true });
  const viewport = page.viewportSize();
  await page.setViewportSize({ width: PICTURE_WIDTH, height: viewport.height });
  await page.evaluate(() => scrollTo(0, 0));
  // Bars and lanes are drawn anew for the width.
  await page.waitForTimeout(300);
  const boxes = await Promise.all(sections.map((section) => page.locator(section).boundingBox()));
  const top = Math.min(...boxes.map(({ y }) => y)) - 8;
  const bottom = Math.max(...boxes.map(({ y, height }) => y + height)) + 8;
  const left = boxes[0].x - 8;
  const clip = { x: left, y: top, width: boxes[0].width + 16, height: bottom - top };
  await page.screenshot({ path: join(folder, `${name}.png`), fullPage: true, clip });
  await page.setViewportSize(viewport);
}

/** Saves what a screen of this size shows, if pictures were asked for. */
export async function screen(page, name, size = { width: 1280, height: 800 }) {
  const folder = process.env.TIERFLOW_WEB_PICTURES;
  if (!folder) return;
  mkdirSync(folder, { recursive: true });
  const viewport = page.viewportSize();
  await page.setViewportSize(size);
  await page.waitForTimeout(300);
  await page.screenshot({ path: join(folder, `${name}.png`) });
  await page.setViewportSize(viewport);
}
