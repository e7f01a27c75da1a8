// What an address says after its `#`: model, options of its plan, conversation. Reload, Back and links to share follow from it. Pure.

import { parseBytes } from './format.js';

const MIB = 2 ** 20;
const DEVICE = /^(auto|cpu|gpu(:\d+)?)$/;

/**
 * @typedef {object} Route
 * @property {string} [model] an address, or a name on the hub
 * @property {string} [file] a file of this computer, which a page cannot open again by itself
 * @property {string} [chat] a conversation's id
 * @property {number} [gpu] bytes of the GPU @property {number} [cpu] bytes of the host's memory
 * @property {number} [context] positions @property {string} [kv] @property {string} [experts] whether they are cached
 * @property {string} [device]
 */

/** @param {string} hash @returns {Route} what makes no sense is left out */
export function readRoute(hash) {
  const given = new URLSearchParams(hash.replace(/^#/, ''));
  const context = Number(given.get('context') ?? NaN);
  const route = {
    model: given.get('model') || undefined,
    file: given.get('file') || undefined,
    chat: given.get('chat') || undefined,
    gpu: parseBytes(given.get('gpu') ?? '') ?? undefined,
    cpu: parseBytes(given.get('cpu') ?? '') ?? undefined,
    context: Number.isSafeInteger(context) && context > 0 ? context : undefined,
    kv: ['f16', 'f32', 'q8_0', 'q4_0'].find((name) => name === given.get('kv')),
    experts: ['on', 'off'].find((name) => name === given.get('experts')),
    device: DEVICE.test(given.get('device') ?? '') ? given.get('device') : undefined,
  };
  return defined(route);
}

/** @param {Route} route */
export function writeRoute({ gpu, cpu, device, ...others }) {
  const sizes = defined({ gpu: gpu && sizeOf(gpu), cpu: cpu && sizeOf(cpu) });
  const chosen = device && device !== 'auto' ? { device } : {};
  const words = new URLSearchParams(defined({ ...others, ...sizes, ...chosen })).toString();
  // Addresses are easier to read so, and mean the same.
  return words ? `#${words.replaceAll('%2F', '/').replaceAll('%3A', ':')}` : '';
}

function sizeOf(value) {
  return value % MIB === 0 ? `${value / MIB}MiB` : String(value);
}

function defined(object) {
  return Object.fromEntries(Object.entries(object).filter(([, value]) => value !== undefined && value !== null && value !== ''));
}
