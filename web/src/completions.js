// Chat in OpenAI's shape over the worker's `generate`: requests in, completions and chunks out.

import { InvalidArgumentError, abortError } from './errors.js';

const ROLES = ['system', 'user', 'assistant'];

/** `engine.chat.completions`. */
export class Completions {
  #generate;
  #modelName;

  /**
   * @param {(request: object, options: {signal?: AbortSignal, onEvent: (step: {token: number, text: string}) => void}) => Promise<object>} generate
   * @param {() => string} modelName
   */
  constructor(generate, modelName) {
    this.#generate = generate;
    this.#modelName = modelName;
  }

  /**
   * One answer: whole, or with `stream: true` as an async iterable of chunks.
   * Leaving the loop early stops the engine; so does `signal`, with an `AbortError` whose `usage` tells what was done until then.
   */
  async create(body, { signal = body.signal } = {}) {
    const request = requestOf(body);
    const head = { id: `chatcmpl-${crypto.randomUUID()}`, created: Math.floor(Date.now() / 1000), model: body.model ?? this.#modelName() };
    if (body.stream) return this.#stream(head, request, signal, body.stream_options?.include_usage ?? false);
    const result = await this.#generate(request, { signal, onEvent: () => {} }).catch(throwWithUsage);
    return {
      ...head,
      object: 'chat.completion',
      choices: [{ index: 0, message: { role: 'assistant', content: result.text }, finish_reason: finishOf(result), logprobs: null }],
      usage: usageOf(result),
    };
  }

  async *#stream(head, request, signal, includeUsage) {
    const chunk = (delta, finishReason = null) => ({
      ...head,
      object: 'chat.completion.chunk',
      choices: [{ index: 0, delta, finish_reason: finishReason, logprobs: null }],
    });
    const stop = new AbortController();
    const queue = new Queue();
    const onEvent = (step) => queue.push(step);
    const generated = this.#generate(request, { signal: anySignal(signal, stop.signal), onEvent }).catch(throwWithUsage);
    generated.then(
      () => queue.end(),
      (error) => queue.end(error),
    );
    try {
      yield chunk({ role: 'assistant', content: '' });
      for await (const { text } of queue) if (text) yield chunk({ content: text });
      const result = await generated;
      yield chunk({}, finishOf(result));
      if (includeUsage) yield { ...head, object: 'chat.completion.chunk', choices: [], usage: usageOf(result) };
    } finally {
      stop.abort();
    }
  }
}

/** The engine's request for a body in OpenAI's shape. */
function requestOf(body) {
  if (!Array.isArray(body.messages) || body.messages.length === 0) {
    throw new InvalidArgumentError('messages: give at least one message, as [{role: "user", content: "…"}]');
  }
  const fault = body.messages.find(({ role, content }) => !ROLES.includes(role) || typeof content !== 'string');
  if (fault) {
    throw new InvalidArgumentError(`messages: each has a role (${ROLES.join(', ')}) and a content that is a string; one has the role \`${fault.role}\``);
  }
  if ((body.n ?? 1) !== 1) throw new InvalidArgumentError('n: one answer is made at a time; ask again for another');
  const stop = typeof body.stop === 'string' ? [body.stop] : (body.stop ?? undefined);
  const request = {
    messages: body.messages.map(({ role, content }) => ({ role, content })),
    max_tokens: body.max_completion_tokens ?? body.max_tokens,
    temperature: body.temperature,
    top_k: body.top_k,
    top_p: body.top_p,
    seed: body.seed,
    stop,
  };
  return Object.fromEntries(Object.entries(request).filter(([, value]) => value !== undefined && value !== null));
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

/** Of an answer that was stopped, the engine tells how far it came. */
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
