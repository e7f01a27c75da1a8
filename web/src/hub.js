// Models on a Hugging Face hub: what people call them, which files a repository has, and which of these make up a model.
// A listing is untrusted input: names that are no names are left out. Asks the hub only when it is called.

import { InvalidArgumentError, ServerError } from './errors.js';
import { fileOfHub, isHub, partOfSplit } from './describe.js';

export const HUB = 'https://huggingface.co';

/** What is taken where a repository has several and none is asked for, best first. */
const PREFERRED = ['Q4_K_M', 'Q4_K_S', 'Q4_1', 'Q4_0', 'Q5_K_M', 'IQ4_XS', 'IQ4_NL', 'Q8_0', 'Q6_K', 'Q3_K_M', 'MXFP4', 'BF16', 'F16'];
/** The small files that belong to a safetensors model. */
const COMPANIONS = /^(config|generation_config|tokenizer|tokenizer_config|special_tokens_map)\.json$|^model\.safetensors\.index\.json$|^(tokenizer|tiktoken)\.model$|\.(jinja|tiktoken)$/;
const QUANT = /^(?:I|T)?Q\d+(?:_(?:\d+|K|S|M|L|XS|XXS|XL|NL))*$|^(?:BF16|F16|F32|MXFP4|MXFP4_MOE)$/;

/**
 * What a text calls on the hub: `org/name`, `org/name:Q4_K_M`, with `hf:`, `hf.co/` or the whole address before it, also that of a
 * file's page; `null` where it is something else, such as the address of a file elsewhere.
 * @param {string} text @returns {{repo: string, quant?: string, revision?: string, file?: string} | null}
 */
export function parseHubName(text) {
  let path = text.trim().replace(/^hf:(\/\/)?/i, '');
  if (/^https?:/i.test(path)) {
    const address = URL.canParse(path) ? new URL(path) : null;
    if (!address || !isHub(address)) return null;
    path = decoded(address.pathname.slice(1));
  } else {
    path = path.replace(/^(www\.)?(huggingface\.co|hf\.co)\//i, '');
  }
  const match = /^((?!\.+\/)[\w.-]+\/(?!\.+$)[\w.-]+?)(?:\.git)?\/?(?::([\w.-]+))?(?:\/(blob|resolve|tree|raw)\/([^/]+)(?:\/(.+))?)?\/?$/.exec(path);
  if (!match) return null;
  const [, repo, quant, kind, revision, file] = match;
  // `models/a.gguf` is a path of this site, not a repository.
  if (!kind && !/^hf:/i.test(text) && /\.(gguf|safetensors)$/i.test(repo)) return null;
  return { repo, ...(quant ? { quant } : {}), ...(revision && revision !== 'main' ? { revision } : {}), ...(file && kind !== 'tree' ? { file } : {}) };
}

/**
 * The models that a repository holds: each quantisation of GGUF with its size, or what is stored as safetensors.
 * @param {string} name as `parseHubName` reads it
 * @param {{signal?: AbortSignal, hub?: string}} [options]
 * @returns {Promise<{repo: string, models: {quant: string, size: number | null, source: import('./index.js').ModelSource}[]}>}
 */
export async function listHub(name, { signal, hub = HUB } = {}) {
  const asked = parseHubName(name);
  if (!asked) throw new InvalidArgumentError(`\`${name}\` is no name on the hub; write org/name, or org/name:Q4_K_M`, { option: 'name' });
  const { repo, revision = 'main' } = asked;
  const address = `${hub}/api/models/${repo}/revision/${encodeURIComponent(revision)}?blobs=true`;
  const response = await fetch(address, { signal }).catch((error) => {
    if (signal?.aborted) throw error;
    throw new ServerError(`${repo}: the hub does not answer (${error.message}); look at your connection`, { url: address });
  });
  if (!response.ok) throw refusalOf(repo, address, response.status);
  const { siblings } = await response.json().catch(() => ({}));
  if (!Array.isArray(siblings)) throw new ServerError(`${repo}: the hub's answer is no list of files; try again later`, { url: address });
  const files = siblings.filter(isFile).map(({ rfilename, size }) => ({ path: rfilename, size: Number.isSafeInteger(size) ? size : null }));
  const urlOf = (path) => `${hub}/${repo}/resolve/${encodeURIComponent(revision)}/${path.split('/').map(encodeURIComponent).join('/')}`;
  return { repo, models: modelsOf(repo, files, urlOf) };
}

/**
 * A model of the hub as a source for `plan` and `load`: of the repository's quantisations that which is asked for, or a usual one.
 * @param {string} name `org/name`, or `org/name:Q4_K_M` @param {{quant?: string, keep?: boolean, signal?: AbortSignal, hub?: string}} [options]
 */
export async function fromHub(name, { quant, keep = true, signal, hub } = {}) {
  const asked = parseHubName(name);
  if (asked?.file) return { url: fileOfHub(new URL(`${hub ?? HUB}/${asked.repo}/resolve/${asked.revision ?? 'main'}/${asked.file}`)).href, keep };
  const { repo, models } = await listHub(name, { signal, hub });
  const wanted = quant ?? asked.quant;
  const found = wanted ? models.find((model) => model.quant.toUpperCase() === wanted.toUpperCase()) : models[0];
  if (!found) {
    const there = models.map((model) => model.quant).join(', ');
    const reason = models.length === 0 ? 'holds neither .gguf nor .safetensors' : `has no ${wanted}; there are ${there}`;
    throw new InvalidArgumentError(`${repo}: ${reason}`, { option: 'quant' });
  }
  return found.source.map((part) => ({ ...part, keep }));
}

/** The quantisation that a file's name gives, in capitals. */
export function quantOf(path) {
  const stem = path.replace(/(-\d{5}-of-\d{5})?\.gguf$/i, '').toUpperCase();
  const [last, ...folders] = stem.split('/').reverse();
  const word = last.split(/[-.]/).pop();
  const endings = word.split('_').map((_, index, parts) => parts.slice(index).join('_'));
  return [...endings, ...folders].find((text) => QUANT.test(text)) ?? null;
}

function modelsOf(repo, files, urlOf) {
  const ggufs = files.filter(({ path }) => /\.gguf$/i.test(path) && !/mmproj|imatrix/i.test(path));
  const firsts = ggufs.filter(({ path }) => (partOfSplit(path)?.index ?? 1) === 1);
  const models = firsts.map(({ path, size }) => {
    const parts = partOfSplit(path) ? ggufs.filter((other) => partOfSplit(other.path)?.stem === partOfSplit(path).stem) : [{ path, size }];
    const source = parts.map((part) => ({ url: urlOf(part.path), name: part.path.split('/').pop() }));
    return { quant: firsts.filter((other) => quantOf(other.path) === quantOf(path)).length > 1 ? null : quantOf(path), size: sumOf(parts), source };
  });
  // Files that their quantisation does not tell apart go by their names.
  for (const model of models) model.quant ??= model.source[0].name;
  if (models.length > 0) return models.sort((a, b) => rankOf(a) - rankOf(b) || (a.size ?? 0) - (b.size ?? 0));
  const weights = files.filter(({ path }) => /^[^/]+\.safetensors$/i.test(path));
  if (weights.length === 0) return [];
  const own = files.filter(({ path }) => COMPANIONS.test(path));
  return [{ quant: 'safetensors', size: sumOf([...weights, ...own]), source: [...weights, ...own].map(({ path }) => ({ url: urlOf(path), name: path })) }];
}

function rankOf({ quant }) {
  const rank = PREFERRED.indexOf(quant);
  return rank < 0 ? PREFERRED.length : rank;
}

/** `null` where a size is not told. */
function sumOf(files) {
  return files.reduce((sum, { size }) => (sum === null || size === null ? null : sum + size), 0);
}

function isFile(sibling) {
  const path = sibling?.rfilename;
  return typeof path === 'string' && !path.startsWith('/') && !path.split('/').includes('..');
}

function refusalOf(repo, url, status) {
  const reasons = { 401: 'there is no such repository, or it asks for a login, which this does not have', 403: 'it asks for a login, which this does not have', 404: 'there is no such repository' };
  return new ServerError(`${repo}: the hub answers ${status}${reasons[status] ? `: ${reasons[status]}` : ''}; look at the name`, { url, status });
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
