// A file on a server, read in ranges by synchronous requests: only in a worker.
// A server's answers are untrusted input: the status, the range and the length of every answer are checked before a byte is used.

import { ServerError } from '../errors.js';
import { truncated } from './file.js';

/** Small reads, as of headers, are served from blocks of this size. */
const BLOCK = 1 << 20;
/** Blocks that are kept. */
const MAX_BLOCKS = 4;
/** Of a server without ranges, the beginning is kept: room for the headers of any known model. */
const PREFIX = 48 << 20;
/** A connection that drops is tried again so often. */
const TRIES = 3;

/**
 * Asks a server for the first byte and opens what it can give.
 * @param {string} name @param {string} url @param {AbortSignal} [signal]
 * @returns {Promise<HttpSource | PrefixSource>} the second where the server sends no ranges: enough for a plan
 */
export async function openHttp(name, url, signal) {
  if (typeof XMLHttpRequest !== 'function') throw new ServerError(`${url}: models are not read from servers outside of browsers; download it, and give its address as file:///…`, { url });
  const body = new AbortController();
  const response = await fetch(url, { headers: { Range: 'bytes=0-0' }, cache: 'no-store', signal: either(signal, body.signal) }).catch((error) => {
    if (signal?.aborted) throw error;
    throw new ServerError(`${url}: no answer (${error.message}); check the address, and that the server allows other sites to read it (CORS)`, { url });
  });
  if (response.status === 206) {
    body.abort();
    return new HttpSource(name, url, await sizeOf(response, url, signal), visibleHeaders(response));
  }
  if (!response.ok) {
    body.abort();
    throw statusError(url, response.status);
  }
  const prefix = await readPrefix(response, url);
  body.abort();
  return new PrefixSource(name, url, prefix.size, prefix.bytes);
}

/** The error for a status that brings no file. */
export function statusError(url, status) {
  const advice = { 401: 'it asks for a login', 403: 'it refuses access', 404: 'there is no such file', 416: 'the file is shorter than asked for' };
  return new ServerError(`${url}: the server answers ${status}${advice[status] ? `, ${advice[status]}` : ''}; check the address`, { url, status });
}

/** The parts of `Content-Range: bytes 5-9/100`; `null` where it is missing or makes no sense. */
export function parseContentRange(text) {
  const match = /^bytes (\d+)-(\d+)\/(\d+)$/.exec(text ?? '');
  if (!match) return null;
  const [first, last, total] = match.slice(1).map(Number);
  return first <= last && last < total ? { first, last, total } : null;
}

/**
 * What identifies a version of a file: the header, and its value. A server of another origin may keep both from us,
 * and asking for what is kept only fills the console.
 */
export function versionOf({ headers }) {
  const header = ['ETag', 'Last-Modified'].find((name) => headers.has(name)) ?? null;
  return { header, value: header && headers.get(header) };
}

/** A file of which any range can be had. */
export class HttpSource {
  #url;
  #visible;
  #blocks = new Map();

  /** @param {string} name @param {string} url @param {number} size @param {object} visible see `visibleHeaders` */
  constructor(name, url, size, visible) {
    this.name = name;
    this.size = size;
    this.#url = url;
    this.#visible = visible;
  }

  /** Fills `into` from `offset`. */
  read(offset, into) {
    if (offset + into.length > this.size) {
      throw truncated(this.name, this.size, offset + into.length);
    }
    if (into.length >= BLOCK) return void into.set(this.#range(offset, into.length));
    for (let done = 0; done < into.length; ) {
      const at = offset + done;
      const block = this.#block(Math.floor(at / BLOCK));
      const part = block.subarray(at % BLOCK, (at % BLOCK) + into.length - done);
      into.set(part, done);
      done += part.length;
    }
  }

  close() {
    this.#blocks.clear();
  }

  #block(index) {
    let block = this.#blocks.get(index);
    if (!block) {
      block = this.#range(index * BLOCK, Math.min(BLOCK, this.size - index * BLOCK));
      if (this.#blocks.size >= MAX_BLOCKS) this.#blocks.delete(this.#blocks.keys().next().value);
      this.#blocks.set(index, block);
    }
    return block;
  }

  #range(offset, length) {
    for (let attempt = 1; ; attempt += 1) {
      try {
        return this.#ask(offset, length);
      } catch (error) {
        if (!error.dropped || attempt === TRIES) throw error;
      }
    }
  }

  #ask(offset, length) {
    const last = offset + length - 1;
    const request = new XMLHttpRequest();
    request.open('GET', this.#url, false);
    request.responseType = 'arraybuffer';
    request.setRequestHeader('Range', `bytes=${offset}-${last}`);
    try {
      request.send();
    } catch {
      throw this.#invalid(`the connection dropped while bytes ${offset} to ${last} were read, ${TRIES} times in a row; try again, or download the model first`, {
        dropped: true,
      });
    }
    const body = new Uint8Array(request.response ?? new ArrayBuffer(0));
    if (request.status === 200) throw this.#invalid('the server ignores ranges and sends the whole file; download the model first, or use another server');
    if (request.status !== 206) throw statusError(this.#url, request.status);
    this.#checkHeaders(request, offset, last);
    if (body.length !== length) {
      throw this.#invalid(`the server sends ${body.length} of ${length} bytes from ${offset}; use another server, or download the model first`, { dropped: body.length < length });
    }
    return body;
  }

  #checkHeaders(request, first, last) {
    const { hasRange, version } = this.#visible;
    const contentRange = hasRange ? request.getResponseHeader('Content-Range') : null;
    const range = parseContentRange(contentRange);
    if (hasRange && (range?.first !== first || range.last !== last)) {
      throw this.#invalid(`the server was asked for bytes ${first} to ${last} and answers \`${contentRange}\`; use another server`);
    }
    const isOther = version.header && request.getResponseHeader(version.header) !== version.value;
    if (isOther || (range && range.total !== this.size)) throw this.#invalid('the file was replaced while it was read; load it again');
  }

  #invalid(text, details) {
    return new ServerError(`${this.#url}: ${text}`, { url: this.#url, ...details });
  }
}

/** The beginning of a file from a server without ranges. Enough to plan with, if the headers lie within. */
export class PrefixSource {
  #url;
  #bytes;

  /** @param {string} name @param {string} url @param {number} size of the whole file @param {Uint8Array} bytes */
  constructor(name, url, size, bytes) {
    this.name = name;
    this.size = size;
    this.#url = url;
    this.#bytes = bytes;
  }

  /** Fills `into` from `offset`, within the beginning. */
  read(offset, into) {
    const end = offset + into.length;
    if (end > this.size) throw truncated(this.name, this.size, end);
    if (end > this.#bytes.length) {
      throw new ServerError(`${this.#url}: the server sends no ranges, so that the model cannot be streamed from it; download it first (the Load button does)`, {
        url: this.#url,
      });
    }
    into.set(this.#bytes.subarray(offset, end));
  }

  close() {
    this.#bytes = new Uint8Array(0);
  }
}

/** Which headers can be checked in the answers to come. */
function visibleHeaders(response) {
  return { hasRange: response.headers.has('Content-Range'), version: versionOf(response) };
}

/** The size of a file whose first byte was sent; asked for by itself where the range is kept from us. */
async function sizeOf(response, url, signal) {
  const range = parseContentRange(response.headers.get('Content-Range'));
  if (range) return range.total;
  const head = await fetch(url, { method: 'HEAD', cache: 'no-store', signal }).catch(() => null);
  const length = Number(head?.headers.get('Content-Length') ?? NaN);
  if (head?.ok && Number.isSafeInteger(length) && length > 0) return length;
  throw new ServerError(`${url}: the server does not send the size of the file; use one that sends Content-Range or Content-Length`, { url });
}

/** The beginning of an answer, and the size of the whole; a size that is not announced is taken to be enough. */
async function readPrefix(response, url) {
  const chunks = [];
  let length = 0;
  let hasEnded = false;
  const reader = response.body.getReader();
  try {
    while (length < PREFIX && !hasEnded) {
      const { done, value } = await reader.read();
      hasEnded = done;
      if (value) chunks.push(value);
      length += value?.length ?? 0;
    }
  } catch (error) {
    throw new ServerError(`${url}: the connection dropped after ${length} bytes (${error.message}); try again`, { url });
  }
  const bytes = new Uint8Array(await new Blob(chunks).arrayBuffer());
  const promised = Number(response.headers.get('Content-Length') ?? 0);
  return { bytes, size: hasEnded ? length : promised || Number.MAX_SAFE_INTEGER };
}

function either(a, b) {
  return a ? AbortSignal.any([a, b]) : b;
}
