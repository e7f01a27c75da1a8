// Tests that cannot hang: one that takes too long fails and says what it waited for, what its pages show, and what page and
// worker said to each other last. Pages that a test leaves behind are closed, so that the next one starts as if alone.

import * as runner from 'node:test';

const SECS = 1000;
/** What takes a test or a hook longer than this has gone wrong; a software adapter computes about a token in a second. */
const LIMIT_MS = (process.env.TIERFLOW_WEB_LONG || process.env.TIERFLOW_WEB_LARGE ? 3600 : process.env.TIERFLOW_WEB_SHORT ? 300 : 900) * SECS;
/** A page or a worker that is asked how it is has so long to answer. */
const ANSWER_MS = 3 * SECS;
/** Limits are counted in steps of so much, which a process that is stopped does not make. */
const STEP_MS = 250;
/** Messages and console lines that are kept of a page. */
const N_KEPT = 8;

/** Contexts of Playwright that are open. */
const contexts = new Set();

/** `test` of `node:test` with a limit; the last argument is the work. */
export function test(title, ...rest) {
  const work = rest.pop();
  runner.test(title, ...rest, () => limited(work));
}

/** `before` of `node:test` with the same limit. */
export function before(work) {
  runner.before(() => limited(work, { isHook: true }));
}

/** From now on, the pages of a context are told of when a test takes too long; their own waits have no other limit. */
export async function watch(context) {
  context.setDefaultTimeout(0);
  contexts.add(context);
  context.on('close', () => contexts.delete(context));
  context.on('page', listen);
  await context.addInitScript(keepMessages, N_KEPT);
}

/** What `promise` yields, or `late` after `ms`. */
export function orAfter(ms, promise, late) {
  let timer;
  const wait = new Promise((resolve) => {
    let left = ms;
    timer = setInterval(() => (left -= STEP_MS) <= 0 && resolve(late), STEP_MS);
  });
  return Promise.race([promise, wait]).finally(() => clearInterval(timer));
}

async function limited(work, { isHook = false } = {}) {
  const older = new Set(pages());
  const running = (async () => work())();
  const late = Symbol('late');
  try {
    if ((await orAfter(LIMIT_MS, running, late)) !== late) return;
    const states = await describe();
    await closePages(() => true);
    // What was awaited of a page fails now that it is closed, and tells its line.
    const error = await orAfter(ANSWER_MS, running.then(() => null, (thrown) => thrown), null);
    const line = /\S*\/tests\/\S+:\d+:\d+/.exec(error?.stack?.replaceAll(/.*\/tests\/support\/.*/g, '') ?? '');
    throw new Error(`not done after ${LIMIT_MS / SECS} s; it waited at ${line?.[0] ?? 'a place that no page knows of'}\n${states}`);
  } finally {
    if (!isHook) await closePages((page) => !older.has(page));
  }
}

function pages() {
  return [...contexts].flatMap((context) => context.pages());
}

async function closePages(isWanted) {
  await orAfter(ANSWER_MS, Promise.allSettled(pages().filter(isWanted).map((page) => page.close())));
}

/** Keeps what a page says in its console and what it throws. */
function listen(page) {
  page.said = [];
  const keep = (line) => {
    page.said.push(line);
    if (page.said.length > N_KEPT) page.said.shift();
  };
  page.on('console', (message) => keep(`${message.type()}: ${message.text()}`));
  page.on('pageerror', (error) => keep(`thrown: ${error}`));
  page.on('crash', () => keep('the page has crashed'));
}

/** Runs in a page before its own scripts: keeps the last messages between it and its workers in `globalThis.lastMessages`. */
function keepMessages(nKept) {
  const kept = (globalThis.lastMessages = []);
  let nWorkers = 0;
  globalThis.Worker = class extends Worker {
    #n = (nWorkers += 1);

    constructor(...args) {
      super(...args);
      this.addEventListener('message', ({ data }) => this.#keep('from', data));
    }

    postMessage(data, ...rest) {
      this.#keep('to', data);
      super.postMessage(data, ...rest);
    }

    terminate() {
      this.#keep('end of', {});
      super.terminate();
    }

    #keep(direction, { id = '', method = '', cancel, event, error, value }) {
      const what = cancel ? 'cancel' : event ? `event ${JSON.stringify(event)}` : error ? `${error.name}: ${error.message}` : value !== undefined ? 'value' : method;
      kept.push({ at: performance.now(), text: `${direction} worker ${this.#n}: ${id} ${what}` });
      if (kept.length > nKept) kept.shift();
    }
  };
}

/** How every open page is, in words. */
async function describe() {
  const described = await Promise.all(pages().filter((page) => page.url() !== 'about:blank').map(describePage));
  return described.length > 0 ? described.join('\n') : 'no page is open';
}

async function describePage(page) {
  const asked = page.evaluate(look, ANSWER_MS / 2).catch((error) => [`it cannot be asked: ${error.message}`]);
  const seen = await orAfter(ANSWER_MS, asked, ['it does not answer']);
  const isAwake = (worker) => orAfter(ANSWER_MS, worker.evaluate(() => 'answers').catch((error) => error.message), 'is busy');
  const workers = await Promise.all(page.workers().map(isAwake));
  const lines = [...seen, ...workers.map((state) => `a worker ${state}`), ...page.said.map((line) => `console: ${line}`)];
  return [page.url(), ...lines.map((line) => `  ${line}`)].join('\n');
}

/** Runs in the page: what it shows of its state, whether it draws, and the last messages. */
async function look(patienceMs) {
  const shown = [...document.querySelectorAll('[id]')].filter((node) => node.checkVisibility() && node.children.length === 0 && node.textContent.trim() !== '');
  const errors = [...document.querySelectorAll('[id$="-error"]:not([hidden])')];
  const buttons = [...document.querySelectorAll('button[id]:enabled')].filter((node) => node.checkVisibility());
  const text = (node) => node.textContent.trim().replaceAll(/\s+/g, ' ').slice(0, 200);
  const frame = await Promise.race([
    new Promise((resolve) => requestAnimationFrame(() => resolve('draws'))),
    new Promise((resolve) => setTimeout(resolve, patienceMs, 'does not draw')),
  ]);
  const now = performance.now();
  return [
    `${document.visibilityState}, ${frame}; buttons: ${buttons.map(({ id }) => id).join(' ')}`,
    ...new Set([...errors, ...shown.filter((node) => node.tagName !== 'BUTTON')].map((node) => `#${node.id}: ${text(node)}`)),
    ...(globalThis.lastMessages ?? []).map(({ at, text }) => `${((now - at) / 1000).toFixed(1)} s ago ${text.slice(0, 200)}`),
  ];
}
