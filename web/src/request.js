// A body in OpenAI's shape as the engine's request. What the engine does not know is refused by its name, never left out.

import { invalid } from './invalid.js';
import { callsOf, isObject, toolsOf } from './tools.js';

/** OpenAI's newer word for `system` is taken, too. */
const ROLES = { system: 'system', developer: 'system', user: 'user', assistant: 'assistant', tool: 'tool' };

const NUMBER = { words: 'a number', isIt: Number.isFinite };
const COUNT = { words: 'a whole number from 0 on', isIt: (value) => Number.isSafeInteger(value) && value >= 0 };
const BOOLEAN = { words: 'true or false', isIt: (value) => typeof value === 'boolean' };
const TEXT = { words: 'a text', isIt: (value) => typeof value === 'string' };
const OBJECT = { words: 'an object', isIt: isObject };
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
  presence_penalty: NUMBER,
  frequency_penalty: NUMBER,
  logit_bias: { words: 'an object of numbers by token', isIt: isBias },
  seed: COUNT,
  grammar: TEXT,
  json_schema: OBJECT,
  regex: TEXT,
  stop: TEXTS,
  raw: BOOLEAN,
  continue_final_message: BOOLEAN,
};

function isBias(value) {
  const isToken = (name) => /^\d+$/.test(name);
  return typeof value === 'object' && !Array.isArray(value) && Object.entries(value).every(([token, bias]) => isToken(token) && Number.isFinite(bias));
}

/** What is read on this side of the worker. */
const OF_THE_CALL = ['messages', 'prompt', 'stream', 'stream_options', 'signal', 'model', 'n', 'logprobs', 'top_logprobs', 'response_format', 'tools', 'tool_choice', 'parallel_tool_calls'];
/** More answers than this are asked for by mistake. */
const MAX_ANSWERS = 16;
/** OpenAI's own limit of how many tokens are told beside each. */
const MAX_LOGPROBS = 20;

/** What a server keeps its books with; no answer depends on it. */
const OF_SERVERS = ['user', 'metadata', 'store', 'service_tier', 'safety_identifier', 'prompt_cache_key'];

/** What the engine has not, with the values that ask for nothing. */
const NOT_THERE = {
  modalities: [['text']],
  functions: [[]],
  function_call: ['none', 'auto'],
};

/** The engine's request for a chat in OpenAI's shape. */
export function requestOf(body) {
  if (!Array.isArray(body.messages) || body.messages.length === 0) {
    throw invalid('messages', 'give at least one message, as [{role: "user", content: "…"}]');
  }
  if (body.prompt !== undefined) throw invalid('prompt', 'belongs to engine.completions; a chat has messages');
  return { messages: body.messages.map(messageOf), ...optionsOf(body), ...chatLogprobs(body), ...toolsOf(body) };
}

/** The engine's request for a text to continue, as OpenAI's older API has it. */
export function textRequestOf(body) {
  if (!TEXT.isIt(body.prompt)) throw invalid('prompt', `give ${TEXT.words} to continue, not ${JSON.stringify(body.prompt) ?? 'nothing'}`);
  if (body.messages !== undefined) throw invalid('messages', 'belong to engine.chat.completions; here a prompt is continued');
  const { logprobs } = body;
  if (Object.keys(toolsOf(body)).length > 0) throw invalid('tools', 'belong to engine.chat.completions; here a prompt is continued');
  const isAsked = logprobs !== undefined && logprobs !== null;
  if (isAsked) expectMost('logprobs', logprobs, MAX_LOGPROBS);
  return { prompt: body.prompt, ...optionsOf(body), raw: true, ...(isAsked ? { logprobs } : {}) };
}

/** How many answers are wanted. */
export function countOf({ n }) {
  if (n === undefined || n === null) return 1;
  if (n === 0) throw invalid('n', 'ask for at least one answer');
  return expectMost('n', n, MAX_ANSWERS);
}

/** In a chat `logprobs` says whether, and `top_logprobs` of how many others beside each token. */
function chatLogprobs({ logprobs, top_logprobs }) {
  if (logprobs !== undefined && logprobs !== null && !BOOLEAN.isIt(logprobs)) throw invalid('logprobs', `give ${BOOLEAN.words}, not ${JSON.stringify(logprobs)}`);
  if (top_logprobs !== undefined && top_logprobs !== null) {
    expectMost('top_logprobs', top_logprobs, MAX_LOGPROBS);
    if (!logprobs && top_logprobs > 0) throw invalid('top_logprobs', 'needs logprobs: true');
  }
  return logprobs ? { logprobs: top_logprobs ?? 0 } : {};
}

function expectMost(name, value, most) {
  if (!COUNT.isIt(value) || value > most) throw invalid(name, `give a whole number up to ${most}, not ${JSON.stringify(value)}`);
  return value;
}

function optionsOf(body) {
  const given = Object.entries(body).filter(([, value]) => value !== undefined && value !== null);
  const options = given.filter(([name, value]) => isOption(name, value));
  const { max_completion_tokens, ...request } = Object.fromEntries(options);
  if (max_completion_tokens !== undefined) request.max_tokens = max_completion_tokens;
  if (request.stop !== undefined) request.stop = [request.stop].flat();
  const form = formOf(body.response_format);
  const [twin] = ['grammar', 'json_schema', 'regex'].filter((name) => form && name in request);
  if (twin) throw invalid('response_format', `is given beside ${twin}; give one of them`);
  return { ...request, ...form };
}

/** The form of an answer: OpenAI's, with Fireworks' grammars. */
function formOf(format) {
  if (format === undefined || format === null || format.type === 'text') return null;
  if (format.type === 'json_object') return { json_schema: OBJECT.isIt(format.schema) ? format.schema : { type: 'object' } };
  if (format.type === 'json_schema' && OBJECT.isIt(format.json_schema?.schema)) return { json_schema: format.json_schema.schema };
  if (format.type === 'grammar' && TEXT.isIt(format.grammar)) return { grammar: format.grammar };
  throw invalid('response_format', `give {type: "text"}, {type: "json_object"}, {type: "json_schema", json_schema: {schema: {…}}} or {type: "grammar", grammar: "…"}, not ${JSON.stringify(format)}`);
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
  if (!NOT_THERE[name].some((neutral) => JSON.stringify(neutral) === JSON.stringify(value))) throw invalid(name, 'is not supported yet; leave it out');
  return false;
}

/** A message as the engine takes it: texts in parts become one. */
function messageOf(message) {
  const { role, content, reasoning_content, tool_calls, tool_call_id, ...others } = message ?? {};
  if (!Object.hasOwn(ROLES, role)) {
    throw invalid('messages', `each has a role (${Object.keys(ROLES).join(', ')}) and a content; one has the role \`${role}\``);
  }
  const isNothing = (value) => value === undefined || value === null || (Array.isArray(value) && value.length === 0);
  const more = Object.keys(others).find((name) => !isNothing(others[name]));
  if (more) throw invalid('messages', `a message has \`${more}\`, which is not supported yet; leave it out`);
  const calls = Array.isArray(tool_calls) && tool_calls.length > 0 ? { tool_calls: callsOf(tool_calls) } : {};
  if (calls.tool_calls && role !== 'assistant') throw invalid('messages', '`tool_calls` are an assistant\'s');
  const result = role === 'tool' && tool_call_id ? { tool_call_id } : {};
  if (calls.tool_calls && isNothing(content)) return { role: ROLES[role], content: '', ...calls };
  const parts = Array.isArray(content) ? content : [{ type: 'text', text: content }];
  const thought = isNothing(reasoning_content) ? {} : { reasoning_content };
  if (thought.reasoning_content !== undefined && !TEXT.isIt(reasoning_content)) throw invalid('messages', 'a `reasoning_content` is a text');
  return { role: ROLES[role], content: parts.map(textOf).join(''), ...thought, ...calls, ...result };
}

function textOf(part) {
  if (part?.type !== 'text') {
    throw invalid('messages', `a part of a content is of the type \`${part?.type}\`, which is not supported yet; give parts of the type \`text\``);
  }
  if (typeof part.text !== 'string') throw invalid('messages', 'the content of each is a text, or a list of parts {type: "text", text: "…"}');
  return part.text;
}
