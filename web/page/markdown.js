// Markdown as models write it: a text becomes a tree of plain objects (`blocksOf`, `inlinesOf`, pure), and that becomes elements.
// Elements are made one by one and text goes in as text, so that no markup of the model's own is ever parsed. Images are links:
// a model cannot make this page fetch anything.

import { element } from './elements.js';

/** Lists in lists in quotes, and marks in marks, end somewhere. */
const MAX_DEPTH = 8;
/** Code that is not closed within so many characters is none. */
const REACH = 4000;

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^\s`]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$/;
const RULE = /^ {0,3}(?:(?:\*\s*){3,}|(?:-\s*){3,}|(?:_\s*){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|(\d{1,9})[.)])( +|$)/;
const TABLE_LINE = /^ {0,3}\|?(?:\s*:?-+:?\s*\|)+(?:\s*:?-+:?\s*)?$/;

/**
 * @param {string} text
 * @returns {object[]} `{kind, source, …}`: `source` is the block's own text, by which what has not changed is known
 */
export function blocksOf(text, depth = 0) {
  const lines = text.split('\n');
  const blocks = [];
  for (let at = 0; at < lines.length; ) {
    if (lines[at].trim() === '') {
      at += 1;
      continue;
    }
    const [block, next] = blockAt(lines, at, depth);
    blocks.push({ ...block, source: lines.slice(at, next).join('\n') });
    at = next;
  }
  return blocks;
}

/** The block that begins at a line, and the line behind it. */
function blockAt(lines, at, depth) {
  const line = lines[at];
  const fence = FENCE.exec(line);
  if (fence) return code(lines, at, fence);
  const heading = HEADING.exec(line);
  if (heading) return [{ kind: 'heading', level: heading[1].length, text: heading[2] }, at + 1];
  if (RULE.test(line)) return [{ kind: 'rule' }, at + 1];
  if (depth < MAX_DEPTH && QUOTE.test(line)) return quote(lines, at, depth);
  if (depth < MAX_DEPTH && ITEM.test(line)) return list(lines, at, depth);
  if (line.includes('|') && TABLE_LINE.test(lines[at + 1] ?? '')) return table(lines, at);
  return paragraph(lines, at, depth);
}

function code(lines, at, [, mark, language]) {
  const isEnd = (line) => line.trim().length >= mark.length && line.trim() === mark[0].repeat(line.trim().length);
  let end = at + 1;
  while (end < lines.length && !isEnd(lines[end])) end += 1;
  return [{ kind: 'code', language, text: lines.slice(at + 1, end).join('\n') }, Math.min(end + 1, lines.length)];
}

function quote(lines, at, depth) {
  let end = at;
  while (end < lines.length && QUOTE.test(lines[end])) end += 1;
  const inner = lines.slice(at, end).map((line) => line.replace(QUOTE, ''));
  return [{ kind: 'quote', blocks: blocksOf(inner.join('\n'), depth + 1) }, end];
}

/** Lines that are indented as far as an item's text belong to it, also behind an empty line. */
function list(lines, at, depth) {
  const [, , , number] = ITEM.exec(lines[at]);
  const isOrdered = number !== undefined;
  const items = [];
  let end = at;
  for (let item; end < lines.length && (item = ITEM.exec(lines[end])) && (item[3] !== undefined) === isOrdered && !RULE.test(lines[end]); ) {
    const width = item[0].length;
    const own = [lines[end].slice(width)];
    for (end += 1; end < lines.length && belongs(lines, end, item[1].length); end += 1) own.push(lines[end].replace(new RegExp(`^ {0,${width}}`), ''));
    items.push(blocksOf(own.join('\n'), depth + 1));
    // Between two items may be an empty line.
    if (lines[end]?.trim() === '' && ITEM.test(lines[end + 1] ?? '')) end += 1;
  }
  return [{ kind: 'list', isOrdered, start: isOrdered ? Number(number) : 1, items }, end];
}

function belongs(lines, at, indent) {
  const isInside = (line) => /^(\s+)\S/.exec(line ?? '')?.[1].length >= indent + 2;
  if (lines[at].trim() === '') return isInside(lines[at + 1]);
  return isInside(lines[at]) || !startsBlock(lines[at]);
}

function table(lines, at) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, '').split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll('\\|', '|'));
  let end = at + 2;
  while (end < lines.length && lines[end].includes('|')) end += 1;
  return [{ kind: 'table', head: cells(lines[at]), rows: lines.slice(at + 2, end).map(cells) }, end];
}

function paragraph(lines, at) {
  let end = at + 1;
  while (end < lines.length && lines[end].trim() !== '' && !startsBlock(lines[end])) end += 1;
  return [{ kind: 'paragraph', text: lines.slice(at, end).map((line) => line.trim()).join('\n') }, end];
}

function startsBlock(line) {
  return [FENCE, HEADING, RULE, QUOTE, ITEM].some((form) => form.test(line));
}

/** Pairs of marks around a text, the longer ones first. */
const PAIRS = [['**', 'strong'], ['__', 'strong'], ['~~', 'del'], ['*', 'em'], ['_', 'em']];
const LINK = /!?\[([^\]\n]{0,1000})\]\(\s*<?([^\s<>()]{1,2000}(?:\([^\s<>()]{0,500}\)[^\s<>()]{0,500})?)>?(?:\s+"[^"\n]{0,500}")?\s*\)/y;
const ADDRESS = /https?:\/\/[^\s<>()\[\]"'`*]{1,2000}[^\s<>()\[\]"'`*.,:;!?]/y;

/**
 * The parts of a line of text: texts, and `{kind, …}`.
 * @param {string} text @returns {(string | object)[]}
 */
export function inlinesOf(text, depth = 0) {
  const parts = [];
  const ends = new Ends(text);
  let plain = '';
  const push = (part) => {
    if (plain) parts.push(plain);
    plain = '';
    parts.push(part);
  };
  for (let at = 0; at < text.length; ) {
    const [part, next] = inlineAt(text, at, depth, ends) ?? [null, at + 1];
    if (typeof part === 'string') plain += part;
    else if (part) push(part);
    else plain += text[at];
    at = next;
  }
  return plain ? [...parts, plain] : parts;
}

/** What begins at a place, and the place behind it; nothing where it is a letter like others. */
function inlineAt(text, at, depth, ends) {
  const sign = text[at];
  if (sign === '\n') return [{ kind: 'br' }, at + 1];
  if (sign === '\\' && /[!-/:-@[-`{-~]/.test(text[at + 1] ?? '')) return [text[at + 1], at + 2];
  if (sign === '`') return codeAt(text, at);
  if (sign === '[' || (sign === '!' && text[at + 1] === '[')) return linkAt(text, at, depth);
  if (sign === 'h' && !/\w/.test(text[at - 1] ?? '')) return addressAt(text, at);
  return depth < MAX_DEPTH ? pairAt(text, at, depth, ends) : null;
}

function codeAt(text, at) {
  const mark = /`+/y;
  mark.lastIndex = at;
  const [ticks] = mark.exec(text);
  const from = at + ticks.length;
  const end = text.slice(from, from + REACH).search(new RegExp(`(?<!\`)${ticks}(?!\`)`));
  if (end < 0) return [ticks, from];
  return [{ kind: 'code', text: text.slice(from, from + end).replace(/^ (.*) $/s, '$1') }, from + end + ticks.length];
}

function linkAt(text, at, depth) {
  LINK.lastIndex = at;
  const match = LINK.exec(text);
  if (!match) return null;
  const [whole, label, address] = match;
  const isSafe = /^(https?:\/\/|mailto:)/i.test(address);
  const parts = depth < MAX_DEPTH ? inlinesOf(label, MAX_DEPTH) : [label];
  return [isSafe ? { kind: 'link', address, parts } : whole, at + whole.length];
}

function addressAt(text, at) {
  ADDRESS.lastIndex = at;
  const match = ADDRESS.exec(text);
  return match && [{ kind: 'link', address: match[0], parts: [match[0]] }, at + match[0].length];
}

function pairAt(text, at, depth, ends) {
  for (const [mark, kind] of PAIRS) {
    if (!text.startsWith(mark, at)) continue;
    const from = at + mark.length;
    // `2 * 3` and `snake_case_name` have no marks.
    if (/\s/.test(text[from] ?? ' ') || (mark[0] === '_' && /\w/.test(text[at - 1] ?? ''))) continue;
    const end = ends.after(from, mark);
    if (end > from) return [{ kind, parts: inlinesOf(text.slice(from, end), depth + 1) }, end + mark.length];
  }
  return null;
}

/** Where marks of a text end that begin somewhere in it. Places are asked for from left to right, so that the text is read once for each mark. */
class Ends {
  #text;
  #found = new Map();

  constructor(text) {
    this.#text = text;
  }

  /** The first end of a mark behind `from`; infinite where there is none. */
  after(from, mark) {
    let end = this.#found.get(mark) ?? -1;
    if (end <= from) end = this.#next(from + 1, mark);
    this.#found.set(mark, end);
    return Number.isFinite(end) ? end : -1;
  }

  #next(from, mark) {
    const text = this.#text;
    for (let end = text.indexOf(mark, from); end >= 0; end = text.indexOf(mark, end + 1)) {
      // Of three stars, the first ends what is inside.
      if (mark.length === 2 && text[end + 2] === mark[0]) continue;
      const isWord = mark[0] === '_' && /\w/.test(text[end + mark.length] ?? '');
      const isLonger = mark.length === 1 && (text[end + 1] === mark || text[end - 1] === mark);
      if (!/\s/.test(text[end - 1]) && !isWord && !isLonger) return end;
    }
    return Infinity;
  }
}

/** Shows a text that grows: blocks that have not changed stay as they are, with what is marked in them. */
export class Rendered {
  #place;
  #sources = [];

  /** @param {HTMLElement} place */
  constructor(place) {
    this.#place = place;
  }

  set(text) {
    const blocks = blocksOf(text);
    const same = blocks.findIndex((block, index) => block.source !== this.#sources[index]);
    const kept = same < 0 ? blocks.length : same;
    while (this.#place.children.length > kept) this.#place.lastChild.remove();
    this.#place.append(...blocks.slice(kept).map(elementOf));
    this.#sources = blocks.map(({ source }) => source);
  }
}

function elementOf(block) {
  switch (block.kind) {
    case 'heading':
      return element(`h${Math.min(block.level + 3, 6)}`, {}, ...inlines(block.text));
    case 'rule':
      return element('hr');
    case 'code':
      return codeBlock(block);
    case 'quote':
      return element('blockquote', {}, ...block.blocks.map(elementOf));
    case 'list':
      return element(block.isOrdered ? 'ol' : 'ul', block.isOrdered && block.start !== 1 ? { start: block.start } : {}, ...block.items.map(itemOf));
    case 'table':
      return tableOf(block);
    default:
      return element('p', {}, ...inlines(block.text));
  }
}

/** An item of one paragraph is that text. */
function itemOf(blocks) {
  const [first, ...rest] = blocks;
  if (first?.kind !== 'paragraph') return element('li', {}, ...blocks.map(elementOf));
  return element('li', {}, ...inlines(first.text), ...rest.map(elementOf));
}

function tableOf({ head, rows }) {
  const row = (cells, tag) => element('tr', {}, ...head.map((_, index) => element(tag, tag === 'th' ? { scope: 'col' } : {}, ...inlines(cells[index] ?? ''))));
  const whole = element('table', {}, element('thead', {}, row(head, 'th')), element('tbody', {}, ...rows.map((cells) => row(cells, 'td'))));
  return element('div', { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': 'Table' }, whole);
}

function codeBlock({ language, text }) {
  const copy = element('button', { type: 'button', class: 'copy-code', 'aria-label': 'Copy this code' }, 'Copy');
  copy.addEventListener('click', () => copyText(text, copy));
  const head = element('div', { class: 'code-head' }, element('span', {}, language), copy);
  return element('div', { class: 'code' }, head, element('pre', { tabindex: 0, 'aria-label': language ? `Code in ${language}` : 'Code' }, element('code', {}, text)));
}

/** Copies, and says so on the button. */
export async function copyText(text, button) {
  const label = button.textContent;
  const isDone = await (navigator.clipboard?.writeText(text) ?? Promise.reject()).then(() => true, () => false);
  button.textContent = isDone ? 'Copied' : 'Not allowed';
  setTimeout(() => (button.textContent = label), 1500);
}

function inlines(text) {
  return inlinesOf(text).map(inlineElement);
}

function inlineElement(part) {
  if (typeof part === 'string') return part;
  if (part.kind === 'br') return element('br');
  if (part.kind === 'code') return element('code', {}, part.text);
  const parts = part.parts.map(inlineElement);
  if (part.kind !== 'link') return element(part.kind, {}, ...parts);
  return element('a', { href: part.address, target: '_blank', rel: 'noopener noreferrer nofollow' }, ...parts);
}
