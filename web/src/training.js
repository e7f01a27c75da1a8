// A call of `train` as the worker takes it, and what comes of it: records become lines of JSON, an adapter becomes files.

import { invalid } from './invalid.js';
import { isObject } from './tools.js';

/** What an adapter's folder consists of, as PEFT writes it; llama.cpp's are one file. */
const ADAPTER_PART = /(^|\/)adapter_config\.json$|(^|\/)adapter_model\.safetensors$|\.gguf$/i;

/**
 * Records as lines of JSON, as `tierflow train --data` has them in a file.
 * @param {string | Iterable<object>} records a text of such lines, or the records themselves
 */
export function linesOf(records) {
  if (typeof records === 'string') return records;
  if (!records?.[Symbol.iterator]) throw invalid('records', 'give a text with a record of JSON in each line, or a list of records');
  return [...records]
    .map((record) => {
      if (!isObject(record)) throw invalid('records', `each is an object, as {prompt: "…", completion: "…"}; one is ${JSON.stringify(record) ?? typeof record}`);
      return JSON.stringify(record);
    })
    .join('\n');
}

/**
 * The files of an adapter as the worker can open them.
 * @param {File | Iterable<File>} adapter
 */
export function describeAdapter(adapter) {
  const items = adapter instanceof Blob ? [adapter] : adapter?.[Symbol.iterator] ? [...adapter] : [];
  const files = items.filter((item) => item instanceof Blob && ADAPTER_PART.test(item.name ?? ''));
  if (files.length === 0) {
    throw invalid('adapter', 'there is no adapter_model.safetensors with its adapter_config.json, and no .gguf, among the files');
  }
  return files.map((file) => ({ kind: 'file', name: file.name.split('/').pop(), file }));
}

/** What `train` yields, from what the worker says. */
export function trainedOf({ adapter, ...described }) {
  const typeOf = (name) => (name.endsWith('.json') ? 'application/json' : 'application/octet-stream');
  return { ...described, adapter: adapter.map(({ name, bytes }) => new File([bytes], name, { type: typeOf(name) })) };
}
