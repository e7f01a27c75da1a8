// What this browser has for models, and what would make it better: graphics card, storage, being opened again without a network.

import { checkWebGpu } from '../index.js';
import { byId, element } from './elements.js';
import { bytes, size } from './format.js';

/** Says on the page who will compute. */
export async function tellWebGpu() {
  const found = await checkWebGpu();
  const place = byId('webgpu');
  if (!found.ok) {
    byId('machine-short').textContent = 'Works here, on the processor: a graphics card would be faster';
    place.textContent = `The processor computes here: planning and chat work, slower than with a GPU. ${found.reason} ${found.advice} (The step that failed: ${found.step}.)`;
    return;
  }
  const limits = `buffers up to ${bytes(found.limits.maxBufferSize)}, bindings up to ${bytes(found.limits.maxStorageBufferBindingSize)}`;
  byId('machine-short').textContent = found.isSoftware ? 'Works here, on the processor: a graphics card would be faster' : `Works here, on the graphics card: ${found.name}`;
  place.textContent = found.isSoftware
    ? `The processor computes here, unless a plan says otherwise: the adapter that WebGPU offers, ${found.name}, is software (${limits}).`
    : `WebGPU: ${found.name}, ${limits}.`;
}

/** Says what else counts; `quota` is what the storage may hold, `null` where there is none. */
export function tellStorage(free) {
  const storage =
    free === null
      ? 'Storage: this browser gives the page none (a private window, or plain http://). Models run from a file or from their server; in a usual window, by https:// or from localhost, they can be kept.'
      : `Storage: models up to ${size(free)} can be kept for use without a network. Larger ones run from a file of yours.`;
  const isolated = globalThis.crossOriginIsolated
    ? 'Cross-origin isolation: there, so that several threads share what the processor computes.'
    : 'Cross-origin isolation: not there, so that what the processor computes has one thread; two headers of this page’s server would change that.';
  const offline = globalThis.isSecureContext && navigator.serviceWorker ? 'Without a network: this page opens again, with the models that are kept.' : 'Without a network: not here; open the page by https:// or from localhost.';
  byId('machine-facts').replaceChildren(...[storage, offline, isolated].map((words) => element('li', {}, words)));
}
