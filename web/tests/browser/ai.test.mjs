// The package as a provider of Vercel's `ai`, in the versions that take its interface: texts, streams, reasoning, forms, tools, vectors and stopping.

import assert from 'node:assert/strict';
import { dirname, join } from 'node:path';
import { after } from 'node:test';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';

import { open, start } from '../support/browser.mjs';
import { before, test } from '../support/limited.mjs';

const web = join(dirname(fileURLToPath(import.meta.url)), '../..');
const COLOUR = { type: 'object', properties: { colour: { enum: ['red', 'green'] } }, required: ['colour'], additionalProperties: false };

let browser;

before(async () => {
  browser = await start();
});
after(() => browser.close());

/** Runs `work` in a page with `ai`, the package and a model that it has loaded: `work({ sdk, engine, model, vectors, COLOUR })`. */
async function withModel(name, options, work) {
  const { outputFiles } = await build({ stdin: { contents: `export * from '${name}'`, resolveDir: web }, bundle: true, write: false, format: 'iife', globalName: 'sdk', platform: 'browser', logLevel: 'error' });
  const page = await open(browser);
  await page.evaluate(`${outputFiles[0].text}; globalThis.sdk = sdk; undefined`);
  const run = `async ({ url, options, COLOUR }) => {
    const of = (name) => import(new URL('../' + name, location.href).href);
    const [{ Engine }, { languageModel, embeddingModel }] = await Promise.all([of('index.js'), of('ai.js')]);
    const engine = new Engine();
    await engine.load(url, options);
    return (${work})({ sdk: globalThis.sdk, engine, model: languageModel(engine), vectors: embeddingModel(engine), COLOUR });
  }`;
  const argument = { url: `${browser.server.address}/models/tiny.gguf`, options: { device: 'cpu', ctx_size: 1024, ...options }, COLOUR };
  const found = await page.evaluate(`(${run})(${JSON.stringify(argument)})`);
  assert.deepEqual(page.errors, []);
  await page.close();
  return found;
}

for (const name of ['ai', 'ai6']) {
  test(`${name} has the engine's texts, whole and streamed, and can stop them`, async () => {
    const found = await withModel(name, {}, async ({ sdk, engine, model }) => {
      const call = { model, prompt: 'Hello', temperature: 0, maxOutputTokens: 6 };
      const own = await engine.chat.completions.create({ messages: [{ role: 'user', content: 'Hello' }], temperature: 0, max_tokens: 6 });
      const { text, finishReason, usage } = await sdk.generateText(call);
      const stream = sdk.streamText(call);
      const parts = [];
      for await (const part of stream.textStream) parts.push(part);
      const ended = [await stream.finishReason, (await stream.usage).outputTokens];
      const stop = new AbortController();
      const long = sdk.streamText({ ...call, maxOutputTokens: 800, abortSignal: stop.signal, onError: () => {} });
      let nParts = 0;
      for await (const part of long.textStream) if (part && (nParts += 1) === 2) stop.abort();
      const after = await sdk.generateText(call);
      return { own: own.choices[0].message.content, n: own.usage.completion_tokens, text, finishReason, usage, parts, ended, nParts, after: after.text };
    });
    assert.equal(found.text, found.own);
    assert.equal(found.parts.join(''), found.own);
    assert.deepEqual([found.finishReason, found.usage.outputTokens], ['length', found.n]);
    assert.deepEqual(found.ended, ['length', found.n]);
    assert.ok(found.nParts < 100, `${found.nParts} parts came`);
    assert.equal(found.after, found.own);
  });

  test(`${name} has objects by schemas, and tools whose results go on`, async () => {
    const found = await withModel(name, {}, async ({ sdk, model, COLOUR }) => {
      const schema = sdk.jsonSchema(COLOUR);
      const { output } = await sdk.generateText({ model, prompt: 'Which colour?', temperature: 0, maxOutputTokens: 40, output: sdk.Output.object({ schema }) });
      const painted = [];
      const paint = sdk.tool({
        description: 'Paints',
        inputSchema: schema,
        execute: async ({ colour }) => {
          painted.push(colour);
          return { done: colour };
        },
      });
      const asked = { model, prompt: 'Paint it', tools: { paint }, temperature: 0, maxOutputTokens: 80, providerOptions: { tierflow: { parallel_tool_calls: false } } };
      const prepareStep = ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? 'required' : 'none' });
      const whole = await sdk.generateText({ ...asked, prepareStep, stopWhen: sdk.stepCountIs?.(2) ?? sdk.isStepCount(2) });
      const types = [];
      let streamed;
      for await (const part of sdk.streamText({ ...asked, toolChoice: 'required' }).fullStream) {
        if (types.at(-1) !== part.type) types.push(part.type);
        if (part.type === 'tool-call') streamed = part.input;
      }
      const steps = whole.steps.map(({ finishReason, toolCalls }) => [finishReason, toolCalls.map(({ toolName, input }) => [toolName, input])]);
      return { output, painted, steps, types, streamed };
    });
    assert.ok(COLOUR.properties.colour.enum.includes(found.output.colour));
    const [[reason, calls], [, none]] = found.steps;
    assert.equal(reason, 'tool-calls');
    assert.deepEqual(calls, [['paint', { colour: found.painted[0] }]]);
    assert.deepEqual(none, []);
    assert.deepEqual(found.streamed, { colour: found.painted[0] });
    assert.ok(found.types.join(' ').includes('tool-input-start tool-input-delta tool-input-end tool-call tool-result'), found.types.join(' '));
  });

  test(`${name} has the engine's vectors`, async () => {
    const found = await withModel(name, { embeddings: true }, async ({ sdk, engine, vectors }) => {
      const { data } = await engine.embeddings.create({ input: ['One', 'Two'] });
      const { embeddings, usage } = await sdk.embedMany({ model: vectors, values: ['One', 'Two'] });
      return { own: data.map(({ embedding }) => embedding), embeddings, usage };
    });
    assert.deepEqual(found.embeddings, found.own);
    assert.ok(found.usage.tokens > 0);
  });
}

test('what the engine does not take of a call is named', async () => {
  const found = await withModel('ai', {}, async ({ sdk, model }) => {
    const of = async (call) => {
      try {
        await sdk.generateText({ model, prompt: 'Hello', maxRetries: 0, ...call });
        return '';
      } catch (error) {
        return error.message;
      }
    };
    const file = { role: 'user', content: [{ type: 'file', mediaType: 'application/pdf', data: 'QQ==' }] };
    return [await of({ prompt: undefined, messages: [file] }), await of({ providerOptions: { tierflow: { colour: 1 } } })];
  });
  assert.match(found[0], /prompt: a part of a message is of the type `file`/);
  assert.match(found[1], /colour: is not known/);
});
