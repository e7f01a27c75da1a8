// Clients from npm against a server that runs: `cargo xtask clients` starts it and sets TIERFLOW_SERVER.
// The likeliest tokens are the same whoever asks, so every client must get the text that a plain request gets.

import assert from 'node:assert/strict';
import { before, test } from 'node:test';

import Anthropic from '@anthropic-ai/sdk';
import { createAnthropic } from '@ai-sdk/anthropic';
import { createOpenAI } from '@ai-sdk/openai';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { generateText, Output, streamText, tool } from 'ai';
import { Ollama } from 'ollama';
import { createOllama } from 'ollama-ai-provider-v2';
import OpenAI from 'openai';
import { z } from 'zod';

const server = process.env.TIERFLOW_SERVER;
const model = 'model';
const prompt = 'Name the colours of the rainbow.';
const messages = [{ role: 'user', content: prompt }];
const most = 12;

const openai = new OpenAI({ baseURL: `${server}/v1`, apiKey: 'none', maxRetries: 0 });
const anthropic = new Anthropic({ baseURL: server, apiKey: 'none', maxRetries: 0 });
const ollama = new Ollama({ host: server });
const ollamaOptions = { temperature: 0, num_predict: most };

/** What a plain request is answered. */
let expected;

before(async () => {
  const body = JSON.stringify({ model, messages, max_tokens: most, temperature: 0 });
  const response = await fetch(`${server}/v1/chat/completions`, { method: 'POST', body, headers: { 'content-type': 'application/json' } });
  expected = (await response.json()).choices[0].message.content;
  assert.ok(expected.length > 10, expected);
});

/** The parts of a stream as one text. */
async function joined(stream, textOf) {
  let text = '';
  for await (const part of stream) text += textOf(part) ?? '';
  return text;
}

const chat = { model, messages, max_tokens: most, temperature: 0 };

test('openai: chat, whole, streamed and by its helper', async () => {
  const whole = await openai.chat.completions.create(chat);
  assert.equal(whole.choices[0].message.content, expected);
  assert.equal(whole.usage.completion_tokens, most);
  const stream = await openai.chat.completions.create({ ...chat, stream: true, stream_options: { include_usage: true } });
  assert.equal(await joined(stream, (chunk) => chunk.choices[0]?.delta?.content), expected);
  assert.equal(await openai.chat.completions.stream(chat).finalContent(), expected);
});

test('openai: responses, whole, streamed and by its helper', async () => {
  const asked = { model, input: prompt, max_output_tokens: most, temperature: 0 };
  assert.equal((await openai.responses.create(asked)).output_text, expected);
  const deltas = await openai.responses.create({ ...asked, stream: true });
  assert.equal(await joined(deltas, (event) => (event.type === 'response.output_text.delta' ? event.delta : '')), expected);
  assert.equal((await openai.responses.stream(asked).finalResponse()).output_text, expected);
});

test('openai: completions, models, errors', async () => {
  const { choices } = await openai.completions.create({ model, prompt: 'One, two,', max_tokens: 4, n: 2, temperature: 0 });
  assert.equal(choices[0].text, choices[1].text);
  assert.deepEqual((await openai.models.list()).data.map(({ id }) => id), [model]);
  await assert.rejects(openai.chat.completions.create({ ...chat, model: 'another' }), OpenAI.NotFoundError);
  await assert.rejects(openai.chat.completions.create({ ...chat, max_tokens: -1 }), OpenAI.BadRequestError);
});

test('openai: a tool is called and its result goes on', async () => {
  const weather = {
    type: 'function',
    function: {
      name: 'weather',
      parameters: { type: 'object', properties: { city: { enum: ['Paris', 'Rome'] } }, required: ['city'], additionalProperties: false },
    },
  };
  const asked = { ...chat, max_tokens: 80, tools: [weather], tool_choice: 'required' };
  const { message, finish_reason: reason } = (await openai.chat.completions.create(asked)).choices[0];
  assert.equal(reason, 'tool_calls');
  const call = message.tool_calls[0];
  assert.ok(['Paris', 'Rome'].includes(JSON.parse(call.function.arguments).city), call.function.arguments);
  // The message comes back as it was given.
  const results = [message, { role: 'tool', tool_call_id: call.id, content: 'rain' }];
  const answer = await openai.chat.completions.create({ ...chat, messages: [...messages, ...results], tools: [weather] });
  assert.equal(typeof answer.choices[0].message.content, 'string');
});

test('anthropic: messages, streamed, counted, and a tool', async () => {
  const whole = await anthropic.messages.create(chat);
  assert.equal(whole.content[0].text, expected);
  assert.equal((await anthropic.messages.stream(chat).finalMessage()).content[0].text, expected);
  const { input_tokens: counted } = await anthropic.messages.countTokens({ model, messages });
  assert.equal(counted, whole.usage.input_tokens + whole.usage.cache_read_input_tokens);
  const schema = { type: 'object', properties: { city: { enum: ['Paris'] } }, required: ['city'], additionalProperties: false };
  const tools = [{ name: 'weather', input_schema: schema }];
  const called = await anthropic.messages.create({ ...chat, max_tokens: 80, tools, tool_choice: { type: 'tool', name: 'weather' } });
  const use = called.content.find(({ type }) => type === 'tool_use');
  assert.deepEqual([called.stop_reason, use.name, use.input], ['tool_use', 'weather', { city: 'Paris' }]);
  // What it said comes back, every field of it.
  const turn = [{ role: 'assistant', content: called.content }, { role: 'user', content: [{ type: 'tool_result', tool_use_id: use.id, content: 'rain' }] }];
  const answer = await anthropic.messages.create({ ...chat, messages: [...messages, ...turn], tools });
  assert.equal(answer.role, 'assistant');
});

test('ollama: chat, whole and streamed, generate, lists', async () => {
  const asked = { model, messages, options: ollamaOptions };
  assert.equal((await ollama.chat(asked)).message.content, expected);
  assert.equal(await joined(await ollama.chat({ ...asked, stream: true }), (part) => part.message.content), expected);
  assert.equal((await ollama.generate({ model, prompt, options: ollamaOptions })).response, expected);
  assert.deepEqual((await ollama.list()).models.map(({ name }) => name), [`${model}:latest`]);
  assert.equal((await ollama.show({ model })).details.format, 'gguf');
});

const providers = {
  'openai, responses': createOpenAI({ baseURL: `${server}/v1`, apiKey: 'none' }).responses(model),
  'openai, chat': createOpenAI({ baseURL: `${server}/v1`, apiKey: 'none' }).chat(model),
  'openai-compatible': createOpenAICompatible({ baseURL: `${server}/v1`, name: 'tierflow', supportsStructuredOutputs: true })(model),
  anthropic: createAnthropic({ baseURL: `${server}/v1`, apiKey: 'none' })(model),
  ollama: createOllama({ baseURL: `${server}/api` })(model),
};

for (const [name, provider] of Object.entries(providers)) {
  // Ollama's provider sends the limit under a name that Ollama does not know.
  const isLimited = name !== 'ollama';
  const asked = {
    model: provider,
    prompt,
    maxOutputTokens: most,
    temperature: 0,
    maxRetries: 0,
    providerOptions: { ollama: { options: ollamaOptions } },
  };

  test(`ai (${name}): text, whole and streamed`, async () => {
    const { text, usage } = await generateText(asked);
    assert.equal(text, expected);
    if (isLimited) assert.equal(usage.outputTokens, most);
    let failure;
    const stream = streamText({ ...asked, onError: ({ error }) => (failure = error) });
    assert.equal(await joined(stream.textStream, (part) => part), expected);
    assert.equal(failure, undefined);
  });

  test(`ai (${name}): an object of a schema`, async () => {
    const schema = z.object({ colour: z.enum(['red', 'green']), share: z.number().int().min(0).max(9) });
    const { output } = await generateText({ ...asked, maxOutputTokens: 80, output: Output.object({ schema }), providerOptions: {} });
    assert.ok(schema.safeParse(output).success, JSON.stringify(output));
  });

  // Ollama's API has no way to demand a call.
  if (name !== 'ollama') {
    test(`ai (${name}): a call that is demanded`, async () => {
      const weather = tool({ inputSchema: z.object({ city: z.enum(['Paris', 'Rome']) }), execute: async ({ city }) => `rain in ${city}` });
      const called = await generateText({ ...asked, maxOutputTokens: 80, tools: { weather }, toolChoice: 'required' });
      assert.match(called.toolResults[0].output, /^rain in (Paris|Rome)$/);
    });
  }
}
