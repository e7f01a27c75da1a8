// Chat in OpenAI's shape over the worker's `generate`: requests in, completions and chunks out.

import { abortError } from './errors.js';
import { requestOf } from './request.js';

/** `engine.chat.completions`. */
export class Completions {
  #generate;
  #modelName;

  /**
   * @param {(request: object, options: {signal?: AbortSignal, onEvent: (event: object) => void}) => Promise<object>} generate an event
   *   is a part of the prompt that was read, `{done, total}`, or a step of the answer, `{token, text}`
   * @param {() => string} modelName
   */
  constructor(generate, modelName) {
    this.#generate = generate;
    this.#modelName = modelName;
  }

  /**
   * One answer: whole, or with `stream: true` as an async iterable of chunks.
   * Leaving the loop early stops the engine; so does `signal`, with an `AbortError` whose `usage` says what was done until then.
   * `onProgress` is called with how many tokens of the prompt are read, and then how many the answer has.
   */
  async create(body, { signal = body?.signal, onProgress = () => {} } = {}) {
    const request = requestOf(body ?? {});
    const head = { id: `chatcmpl-${randomName()}`, created: Math.floor(Date.now() / 1000), model: body.model ?? this.#modelName() };
    const tell = telling(onProgress, request.max_tokens ?? null);
    if (body.stream) return this.#stream(head, request, { signal, tell, includeUsage: body.stream_options?.include_usage ?? false });
    const result = await this.#generate(request, { signal, onEvent: tell }).catch(throwWithUsage);
    return {
      ...head,
      object: 'chat.completion',
      choices: [{ index: 0, message: { role: 'assistant', content: result.text }, finish_reason: finishOf(result), logprobs: null }],
      usage: usageOf(result),
    };
  }

  async *#stream(head, request, { signal, tell, includeUsage }) {
    const chunk = (delta, finishReason = null) => ({
      ...head,
      object: 'chat.completion.chunk',
      choices: [{ index: 0, delta, finish_reason: finishReason, logprobs: null }],
    });
    const stop = new AbortController();
    const queue = new Queue();
    const onEvent = (event) => {
      tell(event);
      if (event.text) queue.push(event.text);
    };
    const generated = this.#generate(request, { signal: anySignal(signal, stop.signal), onEvent }).catch(throwWithUsage);
    generated.then(
      () => queue.end(),
      (error) => queue.end(error),
    );
    try {
      yield chunk({ role: 'assistant', content: '' });
      for await (const content of queue) yield chunk({ content });
      const result = await generated;
      yield chunk({}, finishOf(result));
      if (includeUsage) yield { ...head, object: 'chat.completion.chunk', choices: [], usage: usageOf(result) };
    } finally {
      stop.abort();
    }
  }
}

/** Events of the engine as progress, `{stage, done, total}` in tokens. */
function telling(onProgress, maxTokens) {
  let nTokens = 0;
  return ({ token, done, total }) => {
    if (token === undefined) return onProgress({ stage: 'prompt', done, total });
    nTokens += 1;
    onProgress({ stage: 'answer', done: nTokens, total: maxTokens });
  };
}

/** Differs from answer to answer. `crypto.randomUUID` would do, but browsers keep it from pages on plain http://. */
function randomName() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, '0')).join('');
}

function finishOf(result) {
  return result.finish_reason === 'length' ? 'length' : 'stop';
}

/** OpenAI's counts, and beside them what the engine measured and which tokens it chose. */
function usageOf({ n_prompt, n_cached = 0, n_generated, prompt_secs, decode_secs, ttft_secs, tokens }) {
  return {
    prompt_tokens: n_cached + n_prompt,
    completion_tokens: n_generated,
    total_tokens: n_cached + n_prompt + n_generated,
    prompt_tokens_details: { cached_tokens: n_cached },
    extra: { prompt_secs, decode_secs, ttft_secs, tokens },
  };
}

/** Of an answer that was stopped, the engine says how far it came. */
function throwWithUsage(error) {
  if (error.partial) error.usage = usageOf(error.partial);
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
