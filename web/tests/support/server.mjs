// A static server with ranges for the tests, and the same files from servers that misbehave.
//
//   /…                   files of the served folder
//   /models/NAME         a model: the tiny one where NAME begins with `tiny`, the mixture of experts where it begins with `experts`, else the small one
//   /faulty/FAULT/NAME   such a model from a server with that fault
//   /large/NAME          a file of the large model's folder

import { createReadStream, statSync } from 'node:fs';
import { createServer } from 'node:http';
import { basename, extname, join, normalize } from 'node:path';
import { Transform, pipeline } from 'node:stream';

const TYPES = {
  '.html': 'text/html; charset=utf-8',
  '.js': 'text/javascript',
  '.css': 'text/css',
  '.svg': 'image/svg+xml',
  '.wasm': 'application/wasm',
  '.json': 'application/json',
};

/** Keeps other origins apart from a page. */
const ISOLATION = { 'Cross-Origin-Opener-Policy': 'same-origin', 'Cross-Origin-Embedder-Policy': 'require-corp' };

/** What a server can do wrong; each is given the answer that would be right and changes it. */
const ERRORS = {
  'no-ranges': (answer) => ({ ...answer, status: 200, first: 0, last: answer.size - 1, headers: without(answer.headers, 'Content-Range') }),
  // Right headers for a range, too few bytes, and a length that says so.
  'short-range': (answer) => (answer.status === 206 && answer.last > answer.first ? { ...answer, last: answer.first + Math.floor((answer.last - answer.first) / 2) } : answer),
  'wrong-range': (answer) => (answer.status === 206 && answer.last > 0 ? { ...answer, headers: { ...answer.headers, 'Content-Range': `bytes ${answer.first + 1}-${answer.last}/${answer.size}` } } : answer),
  // The connection goes after so many bytes of any longer answer.
  drop: (answer) => ({ ...answer, dropAfter: Math.floor((answer.last - answer.first) / 2) }),
  // Only the first long answer is dropped.
  'drop-once': (answer, state) => (answer.last - answer.first > 4 << 20 && (state.drops = (state.drops ?? 0) + 1) === 1 ? { ...answer, dropAfter: Math.floor((answer.last - answer.first) * 0.7) } : answer),
  // No length is announced, and the end comes early.
  truncated: (answer) => (answer.status === 200 ? { ...answer, last: Math.floor(answer.size / 2), isChunked: true } : answer),
  slow: (answer) => ({ ...answer, bytesPerSec: 8 << 20 }),
  'very-slow': (answer) => ({ ...answer, bytesPerSec: 128 << 10 }),
  replaced: (answer, state) => ({ ...answer, headers: { ...answer.headers, ETag: `"version ${(state.n = (state.n ?? 0) + 1)}"` } }),
  'no-etag': (answer) => ({ ...answer, headers: without(without(answer.headers, 'ETag'), 'Last-Modified') }),
  html: () => ({ status: 200, text: '<!doctype html><title>Sign in</title>', headers: { 'Content-Type': 'text/html' } }),
  missing: () => ({ status: 404, text: 'not found', headers: {} }),
};

/**
 * @param {{folder?: string, model: string, tiny?: string, experts?: string, large?: string, port?: number, isolated?: boolean, scripts?: Record<string, string>}} options `model`, `tiny` and `experts` are the
 *   files that `/models/` and `/faulty/` give, `large` is the folder of `/large/`; pages that are `isolated` may share memory; `scripts` are texts by
 *   their paths
 * @returns {Promise<{address: string, requests: {method: string, path: string, range?: string}[], close: () => void}>}
 */
export async function serve({ folder, model, tiny, experts, large, port = 0, isolated = false, scripts = {} }) {
  const requests = [];
  const states = new Map();
  const server = createServer((request, response) => {
    const path = decodeURIComponent(new URL(request.url, 'http://localhost').pathname);
    requests.push({ method: request.method, path, range: request.headers.range });
    if (isolated) response.setHeaders(new Map(Object.entries(ISOLATION)));
    if (Object.hasOwn(scripts, path)) return void response.writeHead(200, { 'Content-Type': TYPES['.js'] }).end(scripts[path]);
    try {
      answer(request, response, path, { files: { folder, model, tiny, experts, large }, states });
    } catch {
      response.writeHead(404, cors()).end('not found');
    }
  });
  await new Promise((resolve) => server.listen(port, '127.0.0.1', resolve));
  const close = () => {
    server.closeAllConnections();
    server.close();
  };
  return { address: `http://127.0.0.1:${server.address().port}`, requests, close };
}

function answer(request, response, path, { files, states }) {
  if (request.method === 'OPTIONS') return void response.writeHead(204, { ...cors(), 'Access-Control-Allow-Headers': 'Range' }).end();
  const faulty = /^\/faulty\/([\w-]+)\//.exec(path)?.[1];
  const file = fileOf(path, files);
  const right = rightAnswer(request, file);
  if (!states.has(path)) states.set(path, {});
  send(request, response, file, faulty ? ERRORS[faulty](right, states.get(path)) : right);
}

function fileOf(path, { folder, model, tiny, experts, large }) {
  const name = basename(path);
  if (experts && path.startsWith('/models/experts')) return experts;
  if (/^\/(models|faulty)\//.test(path)) return tiny && name.startsWith('tiny') ? tiny : model;
  if (large && path.startsWith('/large/')) return join(large, name);
  return join(folder, normalize(path.endsWith('/') ? `${path}index.html` : path));
}

function rightAnswer(request, file) {
  const { size, mtimeMs, mtime } = statSync(file);
  const headers = {
    'Content-Type': TYPES[extname(file)] ?? 'application/octet-stream',
    'Accept-Ranges': 'bytes',
    'Cache-Control': 'no-cache',
    ETag: `"${size}-${mtimeMs}"`,
    'Last-Modified': mtime.toUTCString(),
  };
  const range = /^bytes=(\d+)-(\d*)$/.exec(request.headers.range ?? '');
  if (!range) return { status: 200, first: 0, last: size - 1, size, headers };
  const first = Number(range[1]);
  const last = range[2] === '' ? size - 1 : Math.min(Number(range[2]), size - 1);
  if (first > last) return { status: 416, text: '', size, headers: { 'Content-Range': `bytes */${size}` } };
  return { status: 206, first, last, size, headers: { ...headers, 'Content-Range': `bytes ${first}-${last}/${size}` } };
}

function send(request, response, file, { status, first, last, headers, text, dropAfter, bytesPerSec, isChunked }) {
  if (text !== undefined) return void response.writeHead(status, { ...headers, ...cors() }).end(text);
  const length = isChunked ? {} : { 'Content-Length': last - first + 1 };
  response.writeHead(status, { ...headers, ...length, ...cors() });
  if (request.method === 'HEAD') return void response.end();
  const body = createReadStream(file, { start: first, end: last });
  const steps = [body];
  if (dropAfter) steps.push(dropping(dropAfter, response));
  if (bytesPerSec) steps.push(throttled(bytesPerSec));
  pipeline([...steps, response], () => {});
}

function dropping(after, response) {
  let sent = 0;
  return new Transform({
    transform(chunk, _, done) {
      sent += chunk.length;
      if (sent <= after) return done(null, chunk);
      this.push(chunk.subarray(0, Math.max(0, chunk.length - (sent - after))));
      // What was sent has to leave before the connection does.
      setTimeout(() => response.destroy(), 50);
    },
  });
}

function throttled(bytesPerSec) {
  return new Transform({ transform: (chunk, _, done) => setTimeout(() => done(null, chunk), (chunk.length / bytesPerSec) * 1000) });
}

function without(headers, name) {
  return Object.fromEntries(Object.entries(headers).filter(([key]) => key !== name));
}

function cors() {
  return { 'Access-Control-Allow-Origin': '*', 'Access-Control-Expose-Headers': 'Content-Range, ETag, Content-Length' };
}
