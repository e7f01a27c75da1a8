// What a plan comes to, in words that people know. Pure.

import { size } from './format.js';

/** Of a token, about so much is a word. */
const WORDS_PER_TOKEN = 0.75;

/** `about 4,000 words`: two digits say as much as is known. */
export function words(nTokens) {
  const n = nTokens * WORDS_PER_TOKEN;
  const step = 10 ** Math.max(0, Math.floor(Math.log10(Math.max(n, 1))) - 1);
  return `${(Math.round(n / step) * step).toLocaleString('en')} words`;
}

/** How fast an answer comes: `7 words a second`, or `a word in 3 seconds`. */
export function pace(tokensPerSec) {
  const rate = tokensPerSec * WORDS_PER_TOKEN;
  if (rate >= 10) return `${Math.round(rate)} words a second`;
  if (rate >= 1) return `${rate.toFixed(rate < 3 ? 1 : 0)} words a second`;
  return rate > 0 ? `a word in ${(1 / rate).toFixed(1 / rate < 3 ? 1 : 0)} seconds` : 'no words at all';
}

/** How a model goes here: `fits` stays in memory, `streams` is moved again for every word. */
export function fitOf({ forecast }) {
  const { decode } = forecast;
  const isResident = decode.streamed_bytes + decode.fetched_bytes === 0;
  const moved = Math.max(decode.streamed_bytes, decode.fetched_bytes);
  return { fit: isResident ? 'fits' : 'streams', tokensPerSec: decode.secs > 0 ? decode.workload.n_tokens / decode.secs : 0, moved };
}

/** Whether it fits and how fast it should be, as a sentence. */
export function fitInWords(planned) {
  const { fit, tokensPerSec, moved } = fitOf(planned);
  const speed = `about ${pace(tokensPerSec)}, as far as can be told beforehand`;
  if (fit === 'fits') return `Fits here, and runs on the ${placeOf(planned.plan)}: ${speed}.`;
  return `Larger than the memory that it may use: ${size(moved)} stream in for every word. Runs on the ${placeOf(planned.plan)}, ${speed}.`;
}

/** What a conversation may come to, and what more would cost. */
export function memoryInWords({ plan }) {
  const { ctx_size, ctx_size_model } = plan;
  const cache = plan.devices.reduce((sum, { used }) => sum + used.kv_cache, 0);
  const whole = `Remembers about ${words(ctx_size)} of a conversation`;
  if (ctx_size >= ctx_size_model) return `${whole}, as many as it was made for, in ${size(cache)} of memory.`;
  const longer = Math.min(2 * ctx_size, ctx_size_model);
  return `${whole}. ${words(longer)} would take ${size((cache / ctx_size) * (longer - ctx_size))} more memory.`;
}

function placeOf({ devices }) {
  const computing = devices.filter(({ n_executed }) => n_executed > 0).map(({ device }) => (device.startsWith('gpu') ? 'graphics card' : 'processor'));
  return [...new Set(computing)].join(' and the ') || 'processor';
}
