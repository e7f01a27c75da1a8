// Examples as a person writes them, as records for training. Pure.

/**
 * Blocks between empty lines: the first line of each is a question, those behind it are the answer; a block of one line is learnt as it
 * stands. Lines of JSON are passed on, as `tierflow train` takes them.
 * @param {string} text
 * @returns {string | object[]} what `engine.train` takes
 */
export function recordsOf(text) {
  if (text.trimStart().startsWith('{')) return text;
  const blocks = text.replaceAll('\r\n', '\n').split(/\n[^\S\n]*(?:\n|$)/).map((block) => block.trim());
  return blocks.filter((block) => block !== '').map(recordOf);
}

function recordOf(block) {
  const [question, ...rest] = block.split('\n');
  const answer = rest.join('\n').trim();
  if (answer === '') return { text: question };
  return { messages: [{ role: 'user', content: question.trim() }, { role: 'assistant', content: answer }] };
}
