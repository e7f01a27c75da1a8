// Models of a hub: names, what a repository holds, and which of it is taken.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { fromHub, listHub, parseHubName } from '../../src/hub.js';

test('names on the hub, however they are written; addresses elsewhere are none', () => {
  for (const [text, expected] of [
    ['org/name', { repo: 'org/name' }],
    [' hf:org/na.me-1B:Q4_K_M ', { repo: 'org/na.me-1B', quant: 'Q4_K_M' }],
    ['hf.co/org/name', { repo: 'org/name' }],
    ['https://huggingface.co/o/n', { repo: 'o/n' }],
    ['https://huggingface.co/o/n/tree/main', { repo: 'o/n' }],
    ['https://huggingface.co/o/n/blob/main/sub/a%20b.gguf', { repo: 'o/n', file: 'sub/a b.gguf' }],
    ['https://huggingface.co/o/n/resolve/v1/a.gguf?download=true', { repo: 'o/n', revision: 'v1', file: 'a.gguf' }],
    ['models/a.gguf', null],
    ['/models/a.gguf', null],
    ['https://example.org/o/n', null],
    ['name', null],
    ['a/b/c', null],
    ['../..', null],
    ['', null],
  ]) {
    assert.deepEqual(parseHubName(text), expected, text);
  }
});

/** A hub that has these files, at `fetch`'s place. */
function hubWith(context, files, status = 200) {
  const asked = [];
  const siblings = Object.entries(files).map(([rfilename, size]) => ({ rfilename, size }));
  context.mock.method(globalThis, 'fetch', async (url) => {
    asked.push(String(url));
    return new Response(JSON.stringify({ siblings }), { status });
  });
  return asked;
}

const FILES = {
  'm-Q8_0.gguf': 80,
  'm-Q4_K_M.gguf': 40,
  'Q5_K_S/m-Q5_K_S-00001-of-00002.gguf': 30,
  'Q5_K_S/m-Q5_K_S-00002-of-00002.gguf': 20,
  'mmproj-m.gguf': 7,
  '../evil.gguf': 1,
  'README.md': 1,
};

test('a repository is listed by quantisation, parts of one together, what suits most first', async (context) => {
  const asked = hubWith(context, FILES);
  const { repo, models } = await listHub('org/name', { hub: 'https://hub.test' });
  assert.equal(repo, 'org/name');
  assert.deepEqual(asked, ['https://hub.test/api/models/org/name/revision/main?blobs=true']);
  assert.deepEqual(models.map(({ quant, size }) => [quant, size]), [['Q4_K_M', 40], ['Q8_0', 80], ['Q5_K_S', 50]]);
  assert.equal(models[0].source[0].url, 'https://hub.test/org/name/resolve/main/m-Q4_K_M.gguf');
  assert.equal(models[2].source.length, 2);
});

test('files that their quantisation does not tell apart go by their names', async (context) => {
  hubWith(context, { 'a-Q8_0.gguf': 1, 'b-Q8_0.gguf': 2, 'a-Q4_0.gguf': 3, 'model.gguf': 4 });
  assert.deepEqual((await listHub('org/name')).models.map(({ quant }) => quant), ['Q4_0', 'a-Q8_0.gguf', 'b-Q8_0.gguf', 'model.gguf']);
  assert.match((await fromHub('org/name:b-Q8_0.gguf'))[0].url, /b-Q8_0\.gguf$/);
});

test('a folder of safetensors is one model, of the files that make it up', async (context) => {
  hubWith(context, { 'config.json': 1, 'tokenizer.json': 2, 'a-00001-of-00002.safetensors': 10, 'a-00002-of-00002.safetensors': 10, 'pytorch_model.bin': 99, 'onnx/model.safetensors': 5 });
  const [{ quant, size, source }] = (await listHub('org/name')).models;
  assert.deepEqual([quant, size], ['safetensors', 23]);
  assert.deepEqual(source.map(({ name }) => name).sort(), ['a-00001-of-00002.safetensors', 'a-00002-of-00002.safetensors', 'config.json', 'tokenizer.json']);
});

test('fromHub takes what is asked for, or what suits most; what is not there is named beside what is', async (context) => {
  hubWith(context, FILES);
  assert.deepEqual(await fromHub('org/name'), [{ url: 'https://huggingface.co/org/name/resolve/main/m-Q4_K_M.gguf', name: 'm-Q4_K_M.gguf', keep: true }]);
  assert.match((await fromHub('org/name', { quant: 'q8_0', keep: false }))[0].url, /m-Q8_0\.gguf$/);
  assert.match((await fromHub('org/name:Q8_0'))[0].url, /m-Q8_0\.gguf$/);
  assert.deepEqual(await fromHub('https://huggingface.co/o/n/blob/main/a.gguf'), { url: 'https://huggingface.co/o/n/resolve/main/a.gguf', keep: true });
  await assert.rejects(fromHub('org/name', { quant: 'Q2_K' }), { name: 'InvalidArgumentError', message: /has no Q2_K; there are Q4_K_M, Q8_0, Q5_K_S/ });
  await assert.rejects(fromHub('no name at all'), { name: 'InvalidArgumentError' });
});

test('a hub that refuses, or answers something else, is told', async (context) => {
  hubWith(context, {}, 404);
  await assert.rejects(listHub('org/name'), { name: 'ServerError', status: 404, message: /org\/name: the hub answers 404: there is no such repository/ });
  context.mock.method(globalThis, 'fetch', async () => new Response('<html>'));
  await assert.rejects(listHub('org/name'), { name: 'ServerError', message: /no list of files/ });
});
