// Firefox with the page in it, driven over WebDriver BiDi. Its pages take the steps of `browser.mjs`, which are Playwright's.

import { dirname, join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import puppeteer from 'puppeteer-core';

import { serve } from './server.mjs';

const DIST = join(dirname(fileURLToPath(import.meta.url)), '../../dist');
/** What a page waits for has no limit of its own; tests have one. */
const NO_LIMIT = { timeout: 0 };
const POLL_MS = 50;

/** Starts a server and a browser with a profile of its own; pages that are `isolated` may share memory. */
export async function start({ executablePath, model, tiny, isolated = false }) {
  const server = await serve({ folder: DIST, model, tiny, isolated });
  const context = await puppeteer.launch({ browser: 'firefox', executablePath, headless: true, protocolTimeout: 0 });
  const close = async () => {
    await context.close();
    server.close();
  };
  return { server, address: server.address, context: { newPage: async () => new Page(await context.newPage()) }, close };
}

/** Runs in a page: whether what `selector` names is there to be seen. */
function isSeen(selector) {
  return document.querySelector(selector)?.checkVisibility() ?? false;
}

/** A page of Puppeteer with those of Playwright's methods that the steps use. */
class Page {
  #page;

  constructor(page) {
    this.#page = page;
    page.setDefaultTimeout(0);
  }

  on(event, listener) {
    this.#page.on(event, listener);
  }

  goto(address) {
    return this.#page.goto(address, NO_LIMIT);
  }

  reload() {
    return this.#page.reload(NO_LIMIT);
  }

  evaluate(work, argument) {
    return this.#page.evaluate(work, argument);
  }

  /** Asks again and again: the page's policy lets nothing in that would wait there. */
  async waitForFunction(isSo, argument) {
    while (!(await this.#page.evaluate(isSo, argument))) await setTimeout(POLL_MS);
  }

  waitForSelector(selector) {
    return this.waitForFunction(isSeen, selector);
  }

  isVisible(selector) {
    return this.#page.evaluate(isSeen, selector);
  }

  textContent(selector) {
    return this.#page.evaluate((selector) => document.querySelector(selector).textContent, selector);
  }

  async click(selector) {
    await this.waitForSelector(selector);
    await this.#page.click(selector);
  }

  async fill(selector, text) {
    await this.waitForSelector(selector);
    const write = ([selector, text]) => {
      const node = document.querySelector(selector);
      node.value = text;
      node.dispatchEvent(new Event('input', { bubbles: true }));
      node.dispatchEvent(new Event('change', { bubbles: true }));
    };
    await this.#page.evaluate(write, [selector, text]);
  }

  async press(selector, key) {
    await this.#page.focus(selector);
    await this.#page.keyboard.press(key);
  }

  close() {
    return this.#page.close();
  }
}
