// Making elements. Text always goes in as text, so that nothing from a model or a file becomes markup.

const SVG = 'http://www.w3.org/2000/svg';

/** The element with an id that the page is known to have. */
export const byId = (id) => document.getElementById(id);

/** `element('li', {class: 'x', onclick: …}, 'text', child)`. */
export function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function shape(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? '' : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** Replaces a list of terms and figures: `[[term, figure], …]`. */
export function showFigures(list, figures) {
  const items = figures.map(([term, figure]) => element('div', {}, element('dt', {}, term), element('dd', {}, figure)));
  list.replaceChildren(...items);
}

/** Shows what went wrong and what can be done: a text, and buttons `[[label, action], …]`. Nothing hides the notice. */
export function showError(notice, error = null, actions = []) {
  notice.hidden = !error;
  if (!error) return void notice.replaceChildren();
  const buttons = actions.map(([label, action]) => element('button', { type: 'button', onclick: action }, label));
  const row = buttons.length > 0 ? [element('div', { class: 'row' }, ...buttons)] : [];
  notice.replaceChildren(element('strong', {}, titleOf(error)), ` ${wordsOf(error)}`, ...row);
}

/** An error as the page says it: what to do about budgets and contexts has other names here than in the package. */
function wordsOf({ name, message, needed, available }) {
  if (name === 'DoesNotFitError') return `${message.split('; ')[0]}; raise that budget, or shorten the context.`;
  if (name !== 'ContextFullError') return message;
  return `What was said comes to ${needed} tokens, and the context holds ${available}: shorten the message, begin a new conversation, or load with a longer context.`;
}

function titleOf({ name }) {
  const titles = {
    NoWebGpuError: 'No WebGPU.',
    LimitError: 'A limit of the adapter is in the way.',
    DoesNotFitError: 'A budget is too small.',
    DeviceLostError: 'The GPU was lost.',
    InvalidFileError: 'This file cannot be used.',
    InvalidArgumentError: 'This cannot be.',
    ContextFullError: 'The context is full.',
    ServerError: 'The server does not give what is needed.',
    StorageFullError: "The browser's storage is full.",
    FileBusyError: 'The stored model is in use.',
  };
  return titles[name] ?? 'That did not work.';
}

/** Offers `text` as a file. */
export function saveAs(name, type, text) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  element('a', { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}
