// Reading a file in ranges from servers that behave and from those that do not.

import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { mkdtempSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';

import { openHttp, parseContentRange } from '../../src/sources/http.js';
import { serve } from '../support/server.mjs';
import { SyncRequest } from '../support/sync-request.mjs';

const SIZE = 5_000_001;
const content = randomBytes(SIZE);
let server;

before(async () => {
  globalThis.XMLHttpRequest = SyncRequest;
  const file = join(mkdtempSync(join(tmpdir(), 'tierflow-')), 'model.gguf');
  writeFileSync(file, content);
  server = await startInThread(file);
});

after(() => server.close());

/** The server in a thread of its own, since this one waits for it. */
async function startInThread(file) {
  const { Worker } = await import('node:worker_threads');
  const script = `
    import { serve } from ${JSON.stringify(new URL('../support/server.mjs', import.meta.url).href)};
    import { parentPort, workerData } from 'node:worker_threads';
    parentPort.postMessage((await serve({ model: workerData })).address);
  `;
  const worker = new Worker(new URL(`data:text/javascript,${encodeURIComponent(script)}`), { workerData: file });
  const address = await new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject));
  return { address, close: () => worker.terminate() };
}

const at = (reason) => `${server.address}/${reason ? `faulty/${reason}` : 'models'}/m.gguf`;

function read(source, offset, length) {
  const into = new Uint8Array(length);
  source.read(offset, into);
  return into;
}

test('any range of a file is read as it is, small and large, at its edges and across blocks', async () => {
  const source = await openHttp('m.gguf', at());
  assert.equal(source.size, SIZE);
  for (const [offset, length] of [[0, 4], [(1 << 20) - 3, 10], [1, 3 << 20], [SIZE - 1, 1], [0, SIZE], [SIZE - 700, 700]]) {
    assert.deepEqual(read(source, offset, length), new Uint8Array(content.subarray(offset, offset + length)));
  }
});

test('a read beyond the end says that the file is truncated', async () => {
  const source = await openHttp('m.gguf', at());
  assert.throws(() => read(source, SIZE - 2, 3), { name: 'InvalidFileError', message: /truncated/ });
});

test('of a server without ranges the headers can be read, and what lies beyond is refused with advice', async () => {
  const source = await openHttp('m.gguf', at('no-ranges'));
  assert.deepEqual(read(source, 100, 50), new Uint8Array(content.subarray(100, 150)));
  assert.equal(source.size, SIZE);
});

test('an answer with other bytes than asked for is refused, not used', async () => {
  const source = await openHttp('m.gguf', at('wrong-range'));
  assert.throws(() => read(source, 2 << 20, 2 << 20), { name: 'ServerError', message: /asked for bytes/ });
});

test('an answer with too few bytes is refused, not padded', async () => {
  const source = await openHttp('m.gguf', at('short-range'));
  assert.throws(() => read(source, 0, 2 << 20), { name: 'ServerError', message: /sends 1048576 of 2097152 bytes/ });
});

test('a file that is replaced while it is read is not mixed with the old one', async () => {
  const source = await openHttp('m.gguf', at('replaced'));
  assert.throws(() => read(source, 0, 2 << 20), { name: 'ServerError', message: /was replaced/ });
});

test('a connection that drops every time is reported after several tries', async () => {
  const source = await openHttp('m.gguf', at('drop'));
  assert.throws(() => read(source, 0, 2 << 20), { name: 'ServerError', message: /dropped/ });
});

test('a missing file and a dead server are different errors', async () => {
  await assert.rejects(openHttp('m.gguf', at('missing')), { name: 'ServerError', message: /404, there is no such file/ });
  await assert.rejects(openHttp('m.gguf', 'http://127.0.0.1:9/m.gguf'), { name: 'ServerError', message: /no answer/ });
});

test('ranges that make no sense are none', () => {
  assert.deepEqual(parseContentRange('bytes 5-9/100'), { first: 5, last: 9, total: 100 });
  for (const text of [null, '', 'bytes 9-5/100', 'bytes 0-100/100', 'bytes */100', 'items 0-1/2', 'bytes 0-1/*']) {
    assert.equal(parseContentRange(text), null, String(text));
  }
});
