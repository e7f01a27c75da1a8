// Downloads that break off, servers that change their minds, full storage, two tabs: what is stored is whole or is not used.

import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { mkdtempSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, beforeEach, test } from 'node:test';

import { Store } from '../../src/sources/store.js';
import { MemoryFolder, MemoryLocks } from '../support/memory-opfs.mjs';
import { serve } from '../support/server.mjs';

const SIZE = 20_000_000;
const content = randomBytes(SIZE);
let server;
let root;
let store;

before(async () => {
  const file = join(mkdtempSync(join(tmpdir(), 'tierflow-')), 'model.gguf');
  writeFileSync(file, content);
  server = await serve({ model: file });
});

after(() => server.close());

beforeEach(() => {
  Object.defineProperty(globalThis, 'navigator', { value: { locks: new MemoryLocks() }, configurable: true });
  root = new MemoryFolder({ quota: 1e9, used: 0 });
  store = new Store(root, async () => ({ usage: root.disk.used, quota: root.disk.quota }));
});

const at = (reason) => `${server.address}/${reason ? `faulty/${reason}` : 'models'}/${Math.random()}/m.gguf`;

async function assertWhole(url) {
  const source = await store.source(url);
  const bytes = new Uint8Array(source.size);
  source.read(0, bytes);
  source.close();
  assert.equal(Buffer.compare(Buffer.from(bytes.buffer), content), 0);
}

test('a download is whole, is listed, is read, and goes when it is removed', async () => {
  const url = at();
  const steps = [];
  await store.download({ url, name: 'm.gguf' }, { onProgress: (done, total) => steps.push([done, total]) });
  assert.deepEqual(steps.at(-1), [SIZE, SIZE]);
  await assertWhole(url);
  assert.equal(await store.isCurrent(url), true);
  const { models } = await store.list();
  assert.deepEqual(models.map(({ name, size, complete }) => ({ name, size, complete })), [{ name: 'm.gguf', size: SIZE, complete: true }]);
  await store.remove(models[0].key);
  assert.equal(await store.has(url), false);
  assert.equal(root.disk.used, 0);
});

test('a download that breaks off says so, is not taken for whole, and goes on from there', async () => {
  const url = at('drop-once');
  await assert.rejects(store.download({ url, name: 'm' }), { name: 'ServerError', message: /dropped after \d+ of 20000000 bytes; load again/ });
  assert.equal(await store.has(url), false);
  const [{ done }] = (await store.list()).models;
  assert.ok(done > 0 && done < SIZE, String(done));
  await store.download({ url, name: 'm' });
  assert.equal(server.requests.at(-1).range, `bytes=${done}-`);
  await assertWhole(url);
});

test('after a cancel what was safely stored is kept, and resumed', async () => {
  const url = at('slow');
  const controller = new AbortController();
  const download = store.download({ url, name: 'm' }, { signal: controller.signal, onProgress: (done) => done > 3e6 && controller.abort() });
  await assert.rejects(download, { name: 'AbortError' });
  assert.equal(await store.has(url), false);
  assert.ok((await store.list()).models[0].done > 3e6);
});

test('a file that was replaced on the server is not glued to the old beginning', async () => {
  const url = at('drop-once');
  await assert.rejects(store.download({ url, name: 'm' }));
  const [{ key }] = (await store.list()).models;
  const folder = await root.getDirectoryHandle(key);
  const journal = await folder.getFileHandle('entry.json');
  const entry = JSON.parse(await (await journal.getFile()).text());
  const writable = await journal.createWritable();
  await writable.write(JSON.stringify({ ...entry, mark: '"another version"' }));
  await writable.close();
  await store.download({ url, name: 'm' });
  await assertWhole(url);
});

test('bytes beyond what the journal vouches for do not count', async () => {
  const url = at('drop-once');
  await assert.rejects(store.download({ url, name: 'm' }));
  const [{ key, done }] = (await store.list()).models;
  const data = await (await root.getDirectoryHandle(key)).getFileHandle('model');
  data.resize(done + 1000);
  data.bytes.fill(1, done);
  await store.download({ url, name: 'm' });
  await assertWhole(url);
});

test('a server without marks is asked from the beginning', async () => {
  const url = at('no-etag');
  const controller = new AbortController();
  await assert.rejects(store.download({ url, name: 'm' }, { signal: controller.signal, onProgress: (done) => done > 1e6 && controller.abort() }));
  await store.download({ url, name: 'm' });
  assert.equal(server.requests.at(-1).range, undefined);
  await assertWhole(url);
});

test('a changed file on the server makes the stored one outdated; a silent server does not', async () => {
  const url = at('replaced');
  await store.download({ url, name: 'm' });
  assert.equal(await store.isCurrent(url), false);
  const dead = 'http://127.0.0.1:9/m.gguf';
  assert.equal(await store.isCurrent(dead), false, 'what is not stored is not current');
});

test('too little room is reported before anything is downloaded, with the figures', async () => {
  root.disk.quota = 10_000_000;
  const url = at();
  await assert.rejects(store.download({ url, name: 'm' }), { name: 'StorageFullError', needed: SIZE, available: 10_000_000 });
  assert.deepEqual((await store.list()).models, []);
  assert.equal(root.disk.used, 0);
});

test('storage that fills up on the way leaves nothing behind', async () => {
  root.disk.quota = 10_000_000;
  const optimist = new Store(root, async () => ({ usage: 0, quota: 1e12 }));
  await assert.rejects(optimist.download({ url: at(), name: 'm' }), { name: 'StorageFullError' });
  assert.deepEqual((await store.list()).models, []);
  assert.equal(root.disk.used, 0);
});

test('a missing file and an empty answer leave no entry', async () => {
  await assert.rejects(store.download({ url: at('missing'), name: 'm' }), { name: 'ServerError', message: /404/ });
  assert.deepEqual((await store.list()).models, []);
});

test('two tabs: one downloads, the other is refused; both read', async () => {
  const url = at('slow');
  const controller = new AbortController();
  const first = store.download({ url, name: 'm' }, { signal: controller.signal });
  await new Promise((resolve) => setTimeout(resolve, 50));
  await assert.rejects(store.download({ url, name: 'm' }), { name: 'FileBusyError', message: /another tab is downloading/ });
  controller.abort();
  await assert.rejects(first);
  const other = at();
  await store.download({ url: other, name: 'm' });
  const [a, b] = [await store.source(other), await store.source(other)];
  const { models } = await store.list();
  const key = models.find((model) => model.url === other).key;
  await assert.rejects(store.remove(key), { name: 'FileBusyError', message: /in use/ });
  a.close();
  b.close();
  await store.remove(key);
});

test('a model whose reader is just ending can be removed, as after a reload', async () => {
  const url = at();
  await store.download({ url, name: 'm' });
  const source = await store.source(url);
  const [{ key }] = (await store.list()).models;
  setTimeout(() => source.close(), 300);
  await store.remove(key);
  assert.equal(await store.has(url), false);
});

test('folders without a journal that can be believed are cleared away', async () => {
  const folder = await root.getDirectoryHandle('broken-0', { create: true });
  (await folder.getFileHandle('model', { create: true })).resize(1000);
  const journal = await (await folder.getFileHandle('entry.json', { create: true })).createWritable();
  await journal.write('{"schema": "tierflow.stored/1", "url": "x", "na');
  await journal.close();
  assert.deepEqual((await store.list()).models, []);
  assert.equal(root.disk.used, 0);
});
