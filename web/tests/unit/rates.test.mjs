// Measured rates that a browser keeps: who finds them again, and what counts as nothing.

import assert from 'node:assert/strict';
import { beforeEach, test } from 'node:test';

import { Rates } from '../../src/sources/rates.js';
import { MemoryFolder } from '../support/memory-opfs.mjs';

const FILE = 'tierflow-rates.json';
let folder;

beforeEach(() => (folder = new MemoryFolder({ quota: 1e6, used: 0 })));

test('the next visit finds what was measured, and each is told of it once', async () => {
  const [first, next] = [new Rates(folder, 'one'), new Rates(folder, 'one')];
  assert.equal(await first.read(), null);
  assert.equal(await first.write(undefined), false, 'nothing is known');
  assert.equal(await first.write('measured'), true);
  assert.equal(await first.write('measured'), false);
  assert.deepEqual([await first.read(), await next.read(), await next.read()], [null, 'measured', null]);
  await next.write('corrected');
  assert.equal(await first.read(), 'corrected');
});

test('rates of another adapter, browser or version, and half an entry, count as nothing', async () => {
  await new Rates(folder, 'one').write('measured');
  assert.equal(await new Rates(folder, 'other').read(), null);
  const handle = await folder.getFileHandle(FILE);
  const text = await (await handle.getFile()).text();
  for (const broken of [text.slice(0, text.length / 2), '', 'null', '{}', text.replace('rates/1', 'rates/0'), text.replace('"measured"', '7')]) {
    const writable = await handle.createWritable();
    await writable.write(broken);
    await writable.close();
    assert.equal(await new Rates(folder, 'one').read(), null, broken);
  }
});

test('without a storage, or with a full one, rates are known all the same', async () => {
  folder.disk.quota = 0;
  for (const without of [null, folder]) {
    const rates = new Rates(without, 'one');
    assert.deepEqual([await rates.write('measured'), await rates.write('measured')], [true, false]);
    assert.equal(await rates.read(), null);
  }
});
