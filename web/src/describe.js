// What a caller gives as a model, as a list of plain descriptions that the worker can open.

import { invalid } from './invalid.js';
import { hasDisk } from './sources/disk.js';

/** Files of a folder that make up a model; the rest of the folder is left alone. */
const PARTS = /\.(gguf|safetensors|jinja|tiktoken)$|(^|\/)(tokenizer|tiktoken)\.model$|(^|\/)(config|generation_config|tokenizer|tokenizer_config|special_tokens_map)\.json$|\.safetensors\.index\.json$/i;

/** The name of one part of a split GGUF, as `model-00002-of-00003.gguf`. */
const SPLIT = /-(\d{5})-of-(\d{5})\.gguf$/i;

/**
 * The files of a model. The address of one part of a split GGUF stands for all of its parts.
 * @param {File | Iterable<File> | string | URL | {url: string | URL, keep?: boolean, name?: string}} source
 * @returns {object[]} `{kind: 'file', name, file}`, `{kind: 'url', name, url, keep}` or, outside of browsers, `{kind: 'disk', name, url}`
 */
export function describeSources(source) {
  if (typeof source === 'string' || source instanceof URL) return allParts(fromUrl({ url: source }));
  if (source instanceof Blob) return [fromFile(source)];
  if (source && typeof source === 'object' && 'url' in source) return allParts(fromUrl(source));
  const items = source?.[Symbol.iterator] ? [...source] : [];
  const parts = items.flatMap((item) => {
    if (!(item instanceof Blob)) return items.length === 1 ? describeSources(item) : [fromUrl(item?.url ? item : { url: item })];
    return items.length === 1 || PARTS.test(item.name) ? [fromFile(item)] : [];
  });
  if (parts.length === 0) {
    throw invalid('model', 'there is no .gguf and no .safetensors among the files; choose a GGUF file, or the folder of a safetensors model');
  }
  return onlyModel(parts);
}

/** Whether two lists describe the same files, so that what was read of them still holds. */
export function sameSources(a, b) {
  return a.length === b.length && a.every((part, index) => identity(part) === identity(b[index]));
}

function identity({ kind, name, url, keep, file }) {
  return kind === 'file' ? `file ${name} ${file.size} ${file.lastModified}` : `${kind} ${url} ${keep}`;
}

function fromFile(file) {
  return { kind: 'file', name: file.name || 'model.gguf', file };
}

function fromUrl({ url, keep = false, name }) {
  let address;
  try {
    address = new URL(url, globalThis.location?.href);
  } catch {
    throw invalid('model', `\`${url}\` is no address; write https://… with the path of a .gguf file`);
  }
  if (hasDisk && address.protocol === 'file:') return { kind: 'disk', name: name ?? nameOfUrl(address), url: address.href };
  if (!/^https?:$/.test(address.protocol)) {
    throw invalid('model', `${address.protocol} cannot be read from; use http:// or https://`);
  }
  return { kind: 'url', name: name ?? nameOfUrl(address), url: fileOfHub(address).href, keep };
}

/** What a file at an address is called: the end of its path, whatever is asked of the server behind it, as `?download=true`. */
export function nameOfUrl(url) {
  const { pathname, hostname } = new URL(url);
  const last = pathname.split('/').pop();
  try {
    return decodeURIComponent(last) || hostname;
  } catch {
    return last;
  }
}

/** Whether an address is one of the hub's. */
export function isHub({ hostname }) {
  return /^(www\.)?(huggingface\.co|hf\.co)$/.test(hostname);
}

/** Which part of which split GGUF a file is; `null` of a whole one. */
export function partOfSplit(path) {
  const match = SPLIT.exec(path);
  return match && { stem: `${path.slice(0, match.index)} of ${match[2]}`, index: Number(match[1]) };
}

/** The address of a file where that of the hub's page about it was given. */
export function fileOfHub(address) {
  if (!isHub(address)) return address;
  return new URL(address.href.replace(/^([^?#]*?\/)blob(\/)/, '$1resolve$2'));
}

/** All parts of the split GGUF of which `part` is one, beside each other on its server; itself where it is whole. */
function allParts(part) {
  const count = Number(SPLIT.exec(part.name)?.[2] ?? 1);
  const { pathname } = new URL(part.url);
  if (count === 1 || !SPLIT.test(pathname)) return [part];
  return Array.from({ length: count }, (_, index) => {
    const numbered = (text) => text.replace(SPLIT, `-${String(index + 1).padStart(5, '0')}-of-$2.gguf`);
    const address = new URL(part.url);
    address.pathname = numbered(pathname);
    return { ...part, name: numbered(part.name), url: address.href };
  });
}

/** One .gguf is a model by itself, and so are the parts of a split one; two models are a question. */
function onlyModel(parts) {
  const ggufs = parts.filter((part) => /\.gguf$/i.test(part.name));
  const model = ({ name }) => (SPLIT.test(name) ? name.replace(SPLIT, '-of-$2') : name);
  if (ggufs.length > 1 && !ggufs.every((part) => SPLIT.test(part.name) && model(part) === model(ggufs[0]))) {
    throw invalid('model', `${ggufs.length} .gguf files were given; choose one: ${ggufs.map((part) => part.name).join(', ')}`);
  }
  return ggufs.length > 0 ? ggufs : parts;
}
