// Tools and their calls in OpenAI's shape, as the engine takes them. What it would not understand is refused by its name.

import { invalid } from './invalid.js';

/** As OpenAI has it. */
const MAX_TOOLS = 128;
const NAME = /^[A-Za-z0-9_.-]{1,64}$/;

/** `tools`, `tool_choice` and `parallel_tool_calls` of a body, as far as they ask for something. */
export function toolsOf({ tools, tool_choice, parallel_tool_calls }) {
  if (!Array.isArray(tools ?? [])) throw invalid('tools', 'give a list of functions');
  const list = (tools ?? []).map(toolOf);
  if (list.length > MAX_TOOLS) throw invalid('tools', `may be ${MAX_TOOLS} at most`);
  if (list.length === 0 && ['auto', 'none', undefined, null].includes(tool_choice)) return {};
  return {
    tools: list,
    ...(tool_choice === undefined || tool_choice === null ? {} : { tool_choice }),
    ...(parallel_tool_calls === false ? { parallel_tool_calls } : {}),
  };
}

function toolOf(tool, index) {
  const { name, description = '', parameters } = tool?.function ?? {};
  if (tool?.type !== 'function') throw invalid('tools', `tools[${index}] is of the type ${JSON.stringify(tool?.type) ?? 'nothing'}; there are functions alone`);
  if (!NAME.test(name ?? '')) throw invalid('tools', `tools[${index}].function.name must be 1 to 64 letters, digits, underscores, hyphens or dots`);
  if (parameters !== undefined && parameters !== null && !isObject(parameters)) throw invalid('tools', `tools[${index}].function.parameters must be a JSON schema`);
  return { type: 'function', function: { name, description: description ?? '', parameters: parameters ?? { type: 'object', properties: {} } } };
}

/** Calls of an assistant's message as chat templates know them: their arguments are objects there, and texts in OpenAI's API. */
export function callsOf(calls) {
  return calls.map((call, index) => {
    const { name, arguments: given = '{}' } = call?.function ?? {};
    if (typeof name !== 'string') throw invalid('messages', `tool_calls[${index}] has no function with a name`);
    return { id: call.id ?? '', type: 'function', function: { name, arguments: isObject(given) ? given : parsed(given) } };
  });
}

/** A model may have written what is no JSON; templates then get the text. */
function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

/** Whether a value is an object of JSON. */
export function isObject(value) {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
