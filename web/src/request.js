// A body in OpenAI's shape as the engine's request. What the engine does not know is refused by its name, never left out.

import { InvalidArgumentError } from './errors.js';

/** OpenAI's newer word for `system` is taken, too. */
const ROLES = { system: 'system', developer: 'system', user: 'user', assistant: 'assistant' };

const NUMBER = { words: 'a number', isIt: Number.isFinite };
const COUNT = { words: 'a whole number from 0 on', isIt: (value) => Number.isSafeInteger(value) && value >= 0 };
const BOOLEAN = { words: 'true or false', isIt: (value) => typeof value === 'boolean' };
const TEXTS = { words: 'a text or a list of texts', isIt: (value) => [value].flat().every((item) => typeof item === 'string') };

/** What the engine has, by OpenAI's names and, where it has none, by llama.cpp's. */
const OPTIONS = {
  max_tokens: COUNT,
  max_completion_tokens: COUNT,
  temperature: NUMBER,
  top_k: COUNT,
  top_p: NUMBER,
  min_p: NUMBER,
  repeat_penalty: NUMBER,
  repeat_last_n: COUNT,
  seed: COUNT,
  stop: TEXTS,
  raw: BOOLEAN,
};

/** What is read on this side of the worker. */
const OF_THE_CALL = ['messages', 'stream', 'stream_options', 'signal', 'model'];

/** What a server keeps its books with; no answer depends on it. */
const OF_SERVERS = ['user', 'metadata', 'store', 'service_tier', 'safety_identifier', 'prompt_cache_key'];

/** What the engine has not, with the values that ask for nothing. */
const NOT_THERE = {
  n: [1],
  presence_penalty: [0],
  frequency_penalty: [0],
  logit_bias: [{}],
  logprobs: [false],
  top_logprobs: [0],
  response_format: [{ type: 'text' }],
  modalities: [['text']],
  tools: [[]],
  tool_choice: ['none', 'auto'],
  parallel_tool_calls: [true, false],
  functions: [[]],
  function_call: ['none', 'auto'],
};

/** The engine's request for a body in OpenAI's shape. */
export function requestOf(body) {
  if (!Array.isArray(body.messages) || body.messages.length === 0) {
    throw invalid('messages', 'give at least one message, as [{role: "user", content: "…"}]');
  }
  const given = Object.entries(body).filter(([, value]) => value !== undefined && value !== null);
  const options = given.filter(([name, value]) => isOption(name, value));
  const { max_completion_tokens, ...request } = { messages: body.messages.map(messageOf), ...Object.fromEntries(options) };
  if (max_completion_tokens !== undefined) request.max_tokens = max_completion_tokens;
  if (request.stop !== undefined) request.stop = [request.stop].flat();
  return request;
}

/** Whether it is passed on to the engine; refuses what the engine would not understand. */
function isOption(name, value) {
  if (OF_THE_CALL.includes(name) || OF_SERVERS.includes(name)) return false;
  if (name in OPTIONS) {
    const { words, isIt } = OPTIONS[name];
    if (!isIt(value)) throw invalid(name, `give ${words}, not ${JSON.stringify(value) ?? String(value)}`);
    return true;
  }
  if (!(name in NOT_THERE)) throw invalid(name, `is not known; there are ${Object.keys(OPTIONS).join(', ')}`);
  if (!NOT_THERE[name].some((neutral) => JSON.stringify(neutral) === JSON.stringify(value))) throw notThere(name);
  return false;
}

function notThere(name) {
  if (name === 'n') return invalid(name, 'one answer is made at a time; ask again for another');
  return invalid(name, 'is not supported yet; leave it out');
}

/** A message as the engine takes it: texts in parts become one. */
function messageOf(message) {
  const { role, content, ...others } = message ?? {};
  if (!Object.hasOwn(ROLES, role)) {
    throw invalid('messages', `each has a role (${Object.keys(ROLES).join(', ')}) and a content; one has the role \`${role}\``);
  }
  const isNothing = (value) => value === undefined || value === null || (Array.isArray(value) && value.length === 0);
  const more = Object.keys(others).find((name) => !isNothing(others[name]));
  if (more) throw invalid('messages', `a message has \`${more}\`, which is not supported yet; leave it out`);
  const parts = Array.isArray(content) ? content : [{ type: 'text', text: content }];
  return { role: ROLES[role], content: parts.map(textOf).join('') };
}

function textOf(part) {
  if (part?.type !== 'text') {
    throw invalid('messages', `a part of a content is of the type \`${part?.type}\`, which is not supported yet; give parts of the type \`text\``);
  }
  if (typeof part.text !== 'string') throw invalid('messages', 'the content of each is a text, or a list of parts {type: "text", text: "…"}');
  return part.text;
}

function invalid(option, words) {
  return new InvalidArgumentError(`${option}: ${words}`, { option });
}
