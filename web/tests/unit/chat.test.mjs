// The pure parts of the chat: Markdown, conversations in storage, addresses, words of plans.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Conversations, asMarkdown, newConversation, titleOf } from '../../page/conversations.js';
import { size } from '../../page/format.js';
import { groupsOf, recall, remember } from '../../page/hub-memory.js';
import { storage as pageStorage } from '../../page/keep.js';
import { blocksOf, inlinesOf } from '../../page/markdown.js';
import { readRoute, writeRoute } from '../../page/route.js';
import { fitInWords, fitOf, memoryInWords, pace, words } from '../../page/summary.js';

/** A tree without the sources of its blocks. */
function bare(node) {
  if (Array.isArray(node)) return node.map(bare);
  if (typeof node !== 'object' || node === null) return node;
  return Object.fromEntries(Object.entries(node).filter(([name]) => name !== 'source').map(([name, value]) => [name, bare(value)]));
}

test('blocks of Markdown: headings, lists in lists, code that is not ended, quotes, tables', () => {
  const p = (text) => ({ kind: 'paragraph', text });
  const list = (...items) => ({ kind: 'list', isOrdered: false, start: 1, items });
  const cases = [
    ['# A #\ntext\nmore\n\nnext', [{ kind: 'heading', level: 1, text: 'A' }, p('text\nmore'), p('next')]],
    ['- a\n- b\n  - c\n\n  d\n- e', [list([p('a')], [p('b'), list([p('c')]), p('d')], [p('e')])]],
    ['3. x\n4. y', [{ kind: 'list', isOrdered: true, start: 3, items: [[p('x')], [p('y')]] }]],
    ['```js\nlet a;\n\n# b', [{ kind: 'code', language: 'js', text: 'let a;\n\n# b' }]],
    ['~~~\n```\n~~~\nz', [{ kind: 'code', language: '', text: '```' }, p('z')]],
    ['> a\n> - b', [{ kind: 'quote', blocks: [p('a'), list([p('b')])] }]],
    ['| a | b |\n|---|:-:|\n| 1 | x\\|y |', [{ kind: 'table', head: ['a', 'b'], rows: [['1', 'x|y']] }]],
    ['a\n\n---\n* * *', [p('a'), { kind: 'rule' }, { kind: 'rule' }]],
  ];
  for (const [text, expected] of cases) assert.deepEqual(bare(blocksOf(text)), expected, text);
  assert.deepEqual(blocksOf('a\n\n```\nb\n```\nc').map(({ source }) => source), ['a', '```\nb\n```', 'c']);
});

test('marks inside of lines; what would be markup or would fetch something is text or a link', () => {
  const em = (...parts) => ({ kind: 'em', parts });
  const strong = (...parts) => ({ kind: 'strong', parts });
  const link = (address, ...parts) => ({ kind: 'link', address, parts });
  const cases = [
    ['a **b _c_**', ['a ', strong('b ', em('c'))]],
    ['***x*** ~~y~~', [strong(em('x')), ' ', { kind: 'del', parts: ['y'] }]],
    ['2 * 3 * 4, snake_case_name, **open', ['2 * 3 * 4, snake_case_name, **open']],
    ['`a*b*` ``c`d`` \\*e\\*', [{ kind: 'code', text: 'a*b*' }, ' ', { kind: 'code', text: 'c`d' }, ' *e*']],
    ['a\nb', ['a', { kind: 'br' }, 'b']],
    ['[l](https://e.org/a_(b) "t"), https://x.org/y.', [link('https://e.org/a_(b)', 'l'), ', ', link('https://x.org/y', 'https://x.org/y'), '.']],
    ['![i](https://e.org/i.png)', [link('https://e.org/i.png', 'i')]],
    ['[x](javascript:alert(1)) [y](data:text/html,z)', ['[x](javascript:alert(1)) [y](data:text/html,z)']],
    ['<img src=x onerror=alert(1)>', ['<img src=x onerror=alert(1)>']],
  ];
  for (const [text, expected] of cases) assert.deepEqual(inlinesOf(text), expected, text);
});

test('long texts that are all marks are read in moments', () => {
  for (const text of ['*a ', '[', '**', '_a_', '**a ', '![a](', '`x`` ', '> ', '- ', '- a\n', '|']) {
    const begin = performance.now();
    blocksOf(text.repeat(10_000 / text.length)).forEach((block) => inlinesOf(block.text ?? ''));
    assert.ok(performance.now() - begin < 1500, `${text}: ${performance.now() - begin} ms`);
  }
});

/** What `localStorage` is, with room for so many characters. */
function storage(room = Infinity) {
  const values = new Map();
  return {
    get length() {
      return values.size;
    },
    key: (index) => [...values.keys()][index] ?? null,
    getItem: (key) => values.get(key) ?? null,
    setItem(key, value) {
      if (value.length > room) throw new DOMException('full', 'QuotaExceededError');
      values.set(key, value);
    },
    removeItem: (key) => values.delete(key),
  };
}

test('conversations are kept and listed, the latest first; what is damaged is left alone', async () => {
  const own = storage();
  const conversations = new Conversations(own);
  const [first, second] = [newConversation(), newConversation()];
  assert.notEqual(first.id, second.id);
  assert.ok(conversations.save(first));
  assert.equal(own.length, 0, 'an empty one is not kept');
  for (const conversation of [first, second]) {
    conversation.messages.push({ role: 'user', content: `Question ${conversation.id}\nmore` }, { role: 'assistant', content: 'Yes', reasoning: 'Hm' });
    conversations.save(conversation);
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
  assert.deepEqual(conversations.list().map(({ id }) => id), [second.id, first.id]);
  assert.deepEqual(conversations.open(first.id).messages, first.messages);
  assert.equal(titleOf(first), `Question ${first.id}`);
  assert.match(asMarkdown({ ...first, model: 'tiny', system: 'Be brief' }), /^# Question .*\n\n> Be brief\n\n## You\n\n.*\nmore\n\n## tiny\n\n<details>[^]*Hm[^]*<\/details>\n\nYes\n$/);
  for (const damaged of ['{', '7', '{"schema": "tierflow.chat/1"}', JSON.stringify({ ...first, schema: 'tierflow.chat/1', messages: [null] })]) {
    own.setItem(`tierflow.chat.${first.id}`, damaged);
    assert.equal(conversations.open(first.id), null, damaged);
  }
  assert.equal(conversations.list().length, 1);
  assert.equal(new Conversations(storage(10)).save(second), false, 'a full storage is told');
});

test('addresses hold model, options and conversation, and are read as they are written', () => {
  for (const route of [
    { model: 'org/name:Q4_K_M', gpu: 2 ** 32, cpu: 12345, context: 4096, kv: 'f16', device: 'gpu:0', chat: 'abc' },
    { model: 'https://example.org/a b.gguf?x=1&y=#z' },
    { file: 'my model.gguf' },
    {},
  ]) {
    assert.deepEqual(readRoute(writeRoute(route)), route);
  }
  assert.equal(writeRoute({ model: 'org/name:Q4_0', gpu: 2 ** 32, device: 'auto' }), '#model=org/name:Q4_0&gpu=4096MiB');
  assert.deepEqual(readRoute('#model=a/b&gpu=4GiB'), { model: 'a/b', gpu: 2 ** 32 });
  assert.deepEqual(readRoute('#gpu=much&context=-1&kv=f64&device=<b>&what=ever'), {});
});

test('stored files of a model of the hub are one model; what is remembered wrongly is none', () => {
  const parts = ['a', 'b'].map((name) => ({ url: `https://hub.test/${name}`, name }));
  remember({ name: 'name Q8_0', hub: 'org/name:Q8_0', parts });
  assert.deepEqual(recall('org/name:Q8_0'), { name: 'name Q8_0', hub: 'org/name:Q8_0', parts });
  const file = (name, done, size = 10) => ({ key: `key-${name}`, name, url: `https://hub.test/${name}`, size, done, complete: done === size });
  const [model, other] = groupsOf([file('a', 10), file('c', 3), file('b', 10)]);
  assert.deepEqual([model.model.name, model.size, model.complete, model.keys], ['name Q8_0', 20, true, ['key-a', 'key-b']]);
  assert.deepEqual([other.model, other.complete, other.done], [{ url: 'https://hub.test/c', name: 'c' }, false, 3]);
  assert.equal(groupsOf([file('a', 10)])[0].complete, false, 'one of two files is not all of it');
  for (const damaged of ['{', '7', '{"name": "x", "parts": []}', '{"name": "x", "parts": [{"url": "javascript:1", "name": "y"}]}']) {
    pageStorage.setItem('tierflow.hub.org/name:Q8_0', damaged);
    assert.equal(recall('org/name:Q8_0'), null, damaged);
  }
  assert.equal(recall('org/other:Q8_0'), null);
});

const forecast = (streamed_bytes, secs) => ({ decode: { workload: { n_tokens: 1 }, secs, streamed_bytes, fetched_bytes: 0 } });
const devices = [{ device: 'gpu:0', n_executed: 5, used: { kv_cache: 40e6 } }, { device: 'cpu', n_executed: 0, used: { kv_cache: 0 } }];

test('plans in words that people know', () => {
  assert.deepEqual([98362432, 1.34e9, 999, 0, 200e9].map(size), ['98 MB', '1.3 GB', '999 bytes', '0 bytes', '200 GB']);
  assert.deepEqual([8192, 2048, 100, 1].map(words), ['6,100 words', '1,500 words', '75 words', '1 words']);
  assert.deepEqual([40, 8, 2, 0.5, 0.1].map(pace), ['30 words a second', '6 words a second', '1.5 words a second', 'a word in 2.7 seconds', 'a word in 13 seconds']);
  assert.equal(fitOf({ forecast: forecast(0, 0.1) }).fit, 'fits');
  assert.equal(fitInWords({ forecast: forecast(0, 0.1), plan: { devices } }), 'Fits here, and runs on the graphics card: about 8 words a second, as far as can be told beforehand.');
  assert.match(fitInWords({ forecast: forecast(55e6, 1), plan: { devices } }), /^Larger than the memory that it may use: 55 MB stream in for every word\./);
  assert.equal(memoryInWords({ plan: { ctx_size: 4096, ctx_size_model: 32768, devices } }), 'Remembers about 3,100 words of a conversation. 6,100 words would take 40 MB more memory.');
  assert.match(memoryInWords({ plan: { ctx_size: 4096, ctx_size_model: 4096, devices } }), /as many as it was made for, in 40 MB/);
});
