// Which files a model of the hub has, once it was chosen: so it is found without asking the hub again, also without a network, and
// its stored files are shown as the one model that they are. What is stored is checked before it is used.

import { keep, storage } from './keep.js';

const PREFIX = 'tierflow.hub.';

/** @param {{name: string, hub: string, parts: {url: string, name: string}[]}} model */
export function remember({ name, hub, parts }) {
  keep(PREFIX + hub, JSON.stringify({ name, parts }));
}

/** The model that was chosen by a name on the hub, as `remember` was given it; `null` where none was. */
export function recall(hub) {
  try {
    const { name, parts } = JSON.parse(storage.getItem(PREFIX + hub));
    const isPart = (part) => typeof part.name === 'string' && /^https?:/.test(part.url);
    return typeof name === 'string' && parts.length > 0 && parts.every(isPart) ? { name, hub, parts: parts.map(({ url, name }) => ({ url, name })) } : null;
  } catch {
    return null;
  }
}

/**
 * Stored files as the models that they belong to, in the order of the files.
 * @param {{key: string, name: string, url: string, size: number | null, done: number, complete: boolean}[]} files
 */
export function groupsOf(files) {
  const known = Array.from({ length: storage.length }, (_, index) => storage.key(index)).filter((key) => key?.startsWith(PREFIX)).map((key) => recall(key.slice(PREFIX.length)));
  const modelOf = ({ url }) => known.find((model) => model?.parts.some((part) => part.url === url));
  const groups = new Map();
  for (const file of files) {
    const model = modelOf(file);
    const group = groups.get(model ?? file.key) ?? { model: model ?? { url: file.url, name: file.name }, files: [] };
    group.files.push(file);
    groups.set(model ?? file.key, group);
  }
  return [...groups.values()].map(({ model, files }) => {
    const isWhole = files.every(({ complete }) => complete) && files.length === (model.parts?.length ?? 1);
    const sum = (of) => files.reduce((all, file) => all + (of(file) ?? 0), 0);
    return { model, keys: files.map(({ key }) => key), urls: files.map(({ url }) => url), size: sum((file) => file.size), done: sum((file) => file.done), complete: isWhole };
  });
}
