// An engine as a language model and as a model for embeddings of Vercel's package `ai`: its provider interface of version 3, which ai 6 and 7 take.

import { invalid } from './invalid.js';

const PROVIDER = 'tierflow';
/** OpenAI's reasons by those of `ai`. */
const REASONS = { stop: 'stop', length: 'length', tool_calls: 'tool-calls' };

/**
 * The model that `engine` has loaded, for `generateText`, `streamText` and what is built on them. Options of the engine's own, such as `min_p`
 * or `grammar`, go into `providerOptions.tierflow`.
 * @param {import('./index.js').Engine} engine @param {string} [modelId] what `ai` calls it
 */
export function languageModel(engine, modelId = PROVIDER) {
  return {
    specificationVersion: 'v3',
    provider: PROVIDER,
    modelId,
    supportedUrls: {},
    async doGenerate(options) {
      const { body, warnings } = bodyOf(options);
      const answer = await engine.chat.completions.create(body, { signal: options.abortSignal });
      const [{ message, finish_reason }] = answer.choices;
      return { content: contentOf(message), finishReason: reasonOf(finish_reason), usage: usageOf(answer.usage), response: headOf(answer, modelId), warnings };
    },
    async doStream(options) {
      const { body, warnings } = bodyOf(options);
      const asked = { ...body, stream: true, stream_options: { include_usage: true } };
      const chunks = await engine.chat.completions.create(asked, { signal: options.abortSignal });
      return { stream: streamOf(partsOf(chunks, modelId, warnings)) };
    },
  };
}

/**
 * The model that `engine` has loaded with `embeddings: true`, for `embed` and `embedMany`.
 * @param {import('./index.js').Engine} engine @param {string} [modelId] what `ai` calls it
 */
export function embeddingModel(engine, modelId = PROVIDER) {
  return {
    specificationVersion: 'v3',
    provider: PROVIDER,
    modelId,
    maxEmbeddingsPerCall: undefined,
    supportsParallelCalls: false,
    async doEmbed({ values, abortSignal }) {
      const { data, usage } = await engine.embeddings.create({ input: values }, { signal: abortSignal });
      return { embeddings: data.map(({ embedding }) => embedding), usage: { tokens: usage.prompt_tokens }, warnings: [] };
    },
  };
}

/** A call of `ai` as a body in OpenAI's shape, and what of it is not followed. */
function bodyOf(options) {
  const { prompt, tools = [], toolChoice, responseFormat, providerOptions } = options;
  const functions = tools.filter(({ type }) => type === 'function');
  const others = tools.filter(({ type }) => type !== 'function');
  const body = {
    messages: prompt.flatMap(messagesOf),
    max_tokens: options.maxOutputTokens,
    temperature: options.temperature,
    top_p: options.topP,
    top_k: options.topK,
    stop: options.stopSequences,
    presence_penalty: options.presencePenalty,
    frequency_penalty: options.frequencyPenalty,
    seed: options.seed,
    response_format: formatOf(responseFormat),
    ...(functions.length > 0 ? { tools: functions.map(toolOf), tool_choice: choiceOf(toolChoice) } : {}),
    ...providerOptions?.[PROVIDER],
  };
  return { body, warnings: others.map(({ name }) => ({ type: 'unsupported', feature: `tool ${name}`, details: 'the model runs in this browser; there are functions alone' })) };
}

function formatOf(format) {
  if (format?.type !== 'json') return undefined;
  return format.schema ? { type: 'json_schema', json_schema: { name: format.name, schema: format.schema } } : { type: 'json_object' };
}

function toolOf({ name, description, inputSchema }) {
  return { type: 'function', function: { name, description, parameters: inputSchema } };
}

function choiceOf(choice) {
  return choice?.type === 'tool' ? { type: 'function', function: { name: choice.toolName } } : choice?.type;
}

/** A message of `ai`, which has the results of several calls in one. */
function messagesOf({ role, content }) {
  if (typeof content === 'string') return [{ role, content }];
  if (role === 'tool') return content.filter(({ type }) => type === 'tool-result').map(({ toolCallId, output }) => ({ role, tool_call_id: toolCallId, content: textOf(output) }));
  const of = (wanted) => content.filter(({ type }) => type === wanted);
  const other = content.find(({ type }) => !['text', 'reasoning', 'tool-call'].includes(type));
  if (other) throw invalid('prompt', `a part of a message is of the type \`${other.type}\`, which is not supported; give parts of the type \`text\``);
  const calls = of('tool-call').map(({ toolCallId, toolName, input }) => ({ id: toolCallId, type: 'function', function: { name: toolName, arguments: JSON.stringify(input) } }));
  const thought = of('reasoning').map(({ text }) => text).join('');
  return [
    {
      role,
      content: of('text').map(({ text }) => text).join(''),
      ...(thought ? { reasoning_content: thought } : {}),
      ...(calls.length > 0 ? { tool_calls: calls } : {}),
    },
  ];
}

/** What a tool gave, or why it gave nothing, as a text. */
function textOf(output) {
  if (output.type === 'execution-denied') return output.reason ?? 'The call was not allowed.';
  if (output.type !== 'content') return typeof output.value === 'string' ? output.value : JSON.stringify(output.value);
  const other = output.value.find(({ type }) => type !== 'text');
  if (other) throw invalid('prompt', `a result of a tool has a part of the type \`${other.type}\`, which is not supported; give parts of the type \`text\``);
  return output.value.map(({ text }) => text).join('');
}

function contentOf({ content, reasoning_content, tool_calls = [] }) {
  return [
    ...(reasoning_content ? [{ type: 'reasoning', text: reasoning_content }] : []),
    ...(content ? [{ type: 'text', text: content }] : []),
    ...tool_calls.map((call) => ({ type: 'tool-call', toolCallId: call.id, toolName: call.function.name, input: call.function.arguments })),
  ];
}

function reasonOf(reason) {
  return { unified: REASONS[reason] ?? 'other', raw: reason };
}

function usageOf({ prompt_tokens, completion_tokens, prompt_tokens_details: { cached_tokens } }) {
  return {
    inputTokens: { total: prompt_tokens, noCache: prompt_tokens - cached_tokens, cacheRead: cached_tokens, cacheWrite: undefined },
    outputTokens: { total: completion_tokens, text: undefined, reasoning: undefined },
  };
}

function headOf({ id, created }, modelId) {
  return { id, modelId, timestamp: new Date(created * 1000) };
}

/** Chunks in OpenAI's shape as the parts of a stream of `ai`: texts and calls begin and end there. */
async function* partsOf(chunks, modelId, warnings) {
  yield { type: 'stream-start', warnings };
  const open = new Open();
  let isFirst = true;
  let reason;
  let usage;
  try {
    for await (const chunk of chunks) {
      if (isFirst) yield { type: 'response-metadata', ...headOf(chunk, modelId) };
      isFirst = false;
      usage = chunk.usage ?? usage;
      const [choice] = chunk.choices;
      if (!choice) continue;
      reason = choice.finish_reason ?? reason;
      const { reasoning_content, content, tool_calls = [] } = choice.delta;
      if (reasoning_content) yield* open.text('reasoning', reasoning_content);
      if (content) yield* open.text('text', content);
      for (const call of tool_calls) yield* open.call(call);
    }
    yield* open.end();
    yield { type: 'finish', finishReason: reasonOf(reason), usage: usageOf(usage) };
  } catch (error) {
    yield { type: 'error', error };
  }
}

/** The text or the call that a stream is in. */
class Open {
  #nTexts = 0;
  #kind = null;
  #id = null;
  #call = null;

  *text(kind, delta) {
    if (this.#kind !== kind) {
      yield* this.end();
      this.#kind = kind;
      this.#id = String(this.#nTexts++);
      yield { type: `${kind}-start`, id: this.#id };
    }
    yield { type: `${kind}-delta`, id: this.#id, delta };
  }

  /** A call, or a piece of its arguments. */
  *call({ index, id, function: { name, arguments: piece = '' } }) {
    if (this.#call?.index !== index) {
      yield* this.end();
      this.#call = { index, id, name, input: '' };
      yield { type: 'tool-input-start', id, toolName: name };
    }
    this.#call.input += piece;
    if (piece) yield { type: 'tool-input-delta', id: this.#call.id, delta: piece };
  }

  *end() {
    if (this.#kind) yield { type: `${this.#kind}-end`, id: this.#id };
    if (this.#call) {
      const { id, name, input } = this.#call;
      yield { type: 'tool-input-end', id };
      yield { type: 'tool-call', toolCallId: id, toolName: name, input };
    }
    this.#kind = null;
    this.#call = null;
  }
}

/** What comes, as a stream; whoever leaves it stops the engine. */
function streamOf(parts) {
  return new ReadableStream({
    async pull(controller) {
      const { done, value } = await parts.next();
      if (done) controller.close();
      else controller.enqueue(value);
    },
    async cancel() {
      await parts.return();
    },
  });
}
