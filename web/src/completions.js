// Answers in OpenAI's shapes over the worker's `generate`: requests in, completions and chunks out.

import { abortError } from './errors.js';
import { countOf, requestOf, textRequestOf } from './request.js';

/** What differs between a chat and a text that is continued. */
const CHAT = {
  id: 'chatcmpl',
  object: 'chat.completion',
  chunk: 'chat.completion.chunk',
  requestOf,
  choiceOf: ({ text, reasoning, calls = [] }) => ({
    message: {
      role: 'assistant',
      content: calls.length > 0 && text === '' ? null : text,
      ...(reasoning ? { reasoning_content: reasoning } : {}),
      ...(calls.length > 0 ? { tool_calls: calls } : {}),
    },
  }),
  // Of calls, an event has the parts that came.
  deltasOf: ({ text, reasoning, calls = [] }) => [
    ...(reasoning ? [{ delta: { reasoning_content: reasoning } }] : []),
    ...(text ? [{ delta: { content: text } }] : []),
    ...calls.map((part) => ({ delta: { tool_calls: [part] } })),
  ],
  first: [{ delta: { role: 'assistant', content: '' } }],
  last: { delta: {} },
  logprobsOf: (tokens) => ({ content: tokens }),
};
const TEXT = {
  id: 'cmpl',
  object: 'text_completion',
  chunk: 'text_completion',
  requestOf: textRequestOf,
  choiceOf: ({ text }) => ({ text }),
  deltasOf: ({ text }) => (text ? [{ text }] : []),
  first: [],
  last: { text: '' },
  logprobsOf: (tokens) => ({
    tokens: tokens.map(({ token }) => token),
    token_logprobs: tokens.map(({ logprob }) => logprob),
    top_logprobs: tokens.map(({ top_logprobs }) => Object.fromEntries(top_logprobs.map(({ token, logprob }) => [token, logprob]))),
  }),
};

/**
 * @callback Generate asks the engine; an event is a part of the prompt that was read, `{done, total}`, or a step of the answer,
 *   `{token, text, reasoning, calls, logprobs}`
 * @param {object} request @param {{signal?: AbortSignal, onEvent: (event: object) => void}} options
 * @returns {Promise<object>}
 */

/** `engine.chat.completions`, and `engine.completions` with `Completions.ofText`. */
export class Completions {
  #generate;
  #modelName;
  #shape;

  /** @param {Generate} generate @param {() => string} modelName */
  constructor(generate, modelName, shape = CHAT) {
    this.#generate = generate;
    this.#modelName = modelName;
    this.#shape = shape;
  }

  /** Continues texts in place of conversations. */
  static ofText(generate, modelName) {
    return new Completions(generate, modelName, TEXT);
  }

  /**
   * One answer, or `n` one after the other: whole, or with `stream: true` as an async iterable of chunks.
   * Leaving the loop early stops the engine; so does `signal`, with an `AbortError` whose `usage` says what was done until then.
   * `onProgress` is called with how many tokens of the prompt are read, and then how many the answer has.
   */
  async create(body, { signal = body?.signal, onProgress = () => {} } = {}) {
    const request = this.#shape.requestOf(body ?? {});
    const requests = requestsOf(request, countOf(body));
    const head = { id: `${this.#shape.id}-${randomName()}`, created: Math.floor(Date.now() / 1000), model: body.model ?? this.#modelName() };
    if (body.stream) return this.#stream(head, requests, { signal, onProgress, includeUsage: body.stream_options?.include_usage ?? false });
    const results = [];
    const choices = [];
    for (const [index, asked] of requests.entries()) {
      const scored = [];
      const tell = telling(onProgress, asked.max_tokens ?? null);
      const onEvent = (event) => {
        if (event.logprobs) scored.push(event.logprobs);
        tell(event);
      };
      const result = await this.#generate(asked, { signal, onEvent }).catch(throwWithUsage);
      results.push(result);
      choices.push({ index, ...this.#shape.choiceOf(result), finish_reason: finishOf(result), logprobs: asked.logprobs === undefined ? null : this.#shape.logprobsOf(scored) });
    }
    return { ...head, object: this.#shape.object, choices, usage: usageOf(results) };
  }

  async *#stream(head, requests, { signal, onProgress, includeUsage }) {
    const { first, last, deltasOf, logprobsOf, chunk: object } = this.#shape;
    const results = [];
    for (const [index, request] of requests.entries()) {
      const chunk = (delta, finishReason = null, scored = null) => ({
        ...head,
        object,
        choices: [{ index, ...delta, finish_reason: finishReason, logprobs: scored && logprobsOf([scored]) }],
      });
      const stop = new AbortController();
      const queue = new Queue();
      const tell = telling(onProgress, request.max_tokens ?? null);
      const onEvent = (event) => {
        tell(event);
        for (const [n, delta] of deltasOf(event).entries()) queue.push(chunk(delta, null, n === 0 ? event.logprobs : null));
      };
      const generated = this.#generate(request, { signal: anySignal(signal, stop.signal), onEvent }).catch(throwWithUsage);
      generated.then(
        () => queue.end(),
        (error) => queue.end(error),
      );
      try {
        for (const delta of first) yield chunk(delta);
        yield* queue;
        const result = await generated;
        results.push(result);
        yield chunk(last, finishOf(result));
      } finally {
        stop.abort();
      }
    }
    if (includeUsage) yield { ...head, object, choices: [], usage: usageOf(results) };
  }
}

/** A request for each answer. With a seed, each of several has one of its own, so that they differ. */
function requestsOf(request, n) {
  return Array.from({ length: n }, (_, index) => (index === 0 || request.seed === undefined ? request : { ...request, seed: request.seed + index }));
}

/** Events of the engine as progress, `{stage, done, total}` in tokens. */
function telling(onProgress, maxTokens) {
  let nTokens = 0;
  return ({ token, done, total }) => {
    if (done !== undefined) return onProgress({ stage: 'prompt', done, total });
    if (token === undefined) return undefined;
    nTokens += 1;
    return onProgress({ stage: 'answer', done: nTokens, total: maxTokens });
  };
}

/** Differs from answer to answer. `crypto.randomUUID` would do, but browsers keep it from pages on plain http://. */
function randomName() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, '0')).join('');
}

function finishOf(result) {
  if (result.finish_reason === 'length') return 'length';
  return result.calls?.length > 0 ? 'tool_calls' : 'stop';
}

/** OpenAI's counts, and beside them what the engine measured and which tokens it chose. The prompt of several answers counts once. */
function usageOf(results) {
  const [{ n_prompt, n_cached = 0, prompt_secs, ttft_secs }] = results;
  const sum = (of) => results.reduce((all, result) => all + of(result), 0);
  const n_generated = sum((result) => result.n_generated);
  return {
    prompt_tokens: n_cached + n_prompt,
    completion_tokens: n_generated,
    total_tokens: n_cached + n_prompt + n_generated,
    prompt_tokens_details: { cached_tokens: n_cached },
    extra: { prompt_secs, decode_secs: sum(({ decode_secs }) => decode_secs), ttft_secs, tokens: results.flatMap(({ tokens }) => tokens) },
  };
}

/** Of an answer that was stopped, the engine says how far it came. */
function throwWithUsage(error) {
  if (error.partial) error.usage = usageOf([error.partial]);
  throw error;
}

/** Raised when either is. */
function anySignal(a, b) {
  return a ? AbortSignal.any([a, b]) : b;
}

/** Values that arrive before somebody asks for them, and the other way round. */
class Queue {
  #values = [];
  #wake = null;
  #ended = false;
  #error = null;

  push(value) {
    this.#values.push(value);
    this.#wake?.();
  }

  end(error = null) {
    this.#ended = true;
    this.#error = error;
    this.#wake?.();
  }

  async *[Symbol.asyncIterator]() {
    for (;;) {
      while (this.#values.length > 0) yield this.#values.shift();
      if (this.#ended) break;
      await new Promise((resolve) => (this.#wake = resolve));
      this.#wake = null;
    }
    if (this.#error) throw this.#error.name === 'InterruptedError' ? abortError() : this.#error;
  }
}
