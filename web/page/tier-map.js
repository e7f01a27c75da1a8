// The tier map: a bar for each device, all to one scale, a block for each unit; KV cache, activations and slots apart.
// `blocksOf` and `axisOf` are pure; the rest draws.

import { element, shape } from './elements.js';
import { bytes } from './format.js';

const HEIGHT = 34;
const STRIP = 16;

/** What a block can be: colour and pattern, and its words in the legend. */
const KINDS = {
  resident: { colour: 'compute', pattern: null, words: 'weights that stay where they are computed with' },
  host: { colour: 'upload', pattern: 'stripes', words: 'weights that stream from host memory' },
  disk: { colour: 'disk', pattern: 'crosses', words: 'weights that stream from disk' },
  kv: { colour: 'kv', pattern: 'dots', words: 'KV cache' },
  working: { colour: 'other', pattern: 'lines', words: 'activations and staging' },
  slot: { colour: 'upload', pattern: 'frame', words: 'slots that streamed weights pass through' },
};

/**
 * The blocks of one device's bar, in order.
 * @returns {{label: string, size: number, kind: string}[]}
 */
export function blocksOf(plan, { device, used, ring }) {
  const blocks = [];
  for (const [index, unit] of plan.units.entries()) {
    if (index === 0 && isSharedWithHead(plan, unit)) continue;
    // What units have in one chunk is shown as one block, with the first of them.
    const begun = plan.chunks.slice(unit.chunks.start, unit.chunks.end).filter((chunk) => chunk.work[0].unit === index);
    const here = begun.filter((chunk) => chunk.stored_on === device);
    const isGathered = unit.chunks.start === unit.chunks.end && unit.stored_on === device;
    const size = isGathered ? unit.size_bytes : here.reduce((sum, chunk) => sum + chunk.size_bytes, 0);
    if (size === 0) continue;
    const kind = isGathered || unit.execute_on === device ? 'resident' : device === 'disk' ? 'disk' : 'host';
    const name = here.length > 0 ? nameOf(plan, here[0]) : unit.name;
    blocks.push({ label: `${name}, computed by ${unit.execute_on}`, size, kind });
  }
  if (used.kv_cache > 0) blocks.push({ label: 'KV cache', size: used.kv_cache, kind: 'kv' });
  if (used.activations > 0) blocks.push({ label: 'activations', size: used.activations, kind: 'working' });
  if (used.staging > 0) blocks.push({ label: 'staging', size: used.staging, kind: 'working' });
  if (used.expert_cache > 0) blocks.push({ label: 'expert cache', size: used.expert_cache, kind: 'slot' });
  for (let slot = 0; slot < (ring?.n_slots ?? 0) && used.slots > 0; slot += 1) {
    blocks.push({ label: `slot ${slot} of ${ring.n_slots}`, size: used.slots / ring.n_slots, kind: 'slot' });
  }
  return blocks;
}

/** What to call a chunk: by its unit, or by the first and the last of those that share it. */
export function nameOf(plan, chunk) {
  const [first, ...others] = chunk.work.map(({ unit }) => plan.units[unit].name);
  return others.length > 0 ? `${first} … ${others.at(-1)}` : first;
}

/** Where the bars end: the fullest device, and budgets that are not much larger. */
export function axisOf(plan) {
  const totals = plan.devices.map((device) => sizeOn(plan, device));
  const most = Math.max(...totals, 1);
  const budgets = plan.devices.map(({ budget }) => budget ?? 0).filter((budget) => budget <= most * 1.5);
  return Math.max(most, ...budgets);
}

/** All bytes that a device holds; of a disk, those that are read from it, as its usage counts none. */
export function sizeOn(plan, device) {
  return blocksOf(plan, device).reduce((sum, { size }) => sum + size, 0);
}

/** Whether head and embedding are one matrix in one place, which is then shown once, as the head. */
function isSharedWithHead(plan, embedding) {
  const head = plan.units.at(-1);
  if (head.size_bytes > 0 || plan.units.length < 2) return false;
  return plan.chunks.slice(head.chunks.start, head.chunks.end).some((chunk) => chunk.stored_on === embedding.stored_on);
}

/** Draws all bars and the strip of layers into `place`; `say` is called with the block that is pointed at. */
export function drawTiers(place, plan, say) {
  const width = Math.max(200, Math.floor(place.clientWidth));
  const axis = axisOf(plan);
  const tiers = plan.devices.map((device) => drawTier(plan, device, axis, width, say));
  const focused = place.contains(document.activeElement) ? document.activeElement.dataset.device : null;
  place.replaceChildren(...tiers, drawStrip(plan, width));
  // Who was on a bar when the plan changed is on it still.
  if (focused) place.querySelector(`[data-device="${focused}"]`)?.focus();
}

/** The legend of the kinds that a plan has. */
export function drawLegend(list, plan) {
  const kinds = new Set(plan.devices.flatMap((device) => blocksOf(plan, device).map((block) => block.kind)));
  const items = Object.entries(KINDS).filter(([kind]) => kinds.has(kind));
  const swatch = (kind) => {
    const picture = shape('svg', { width: 22, height: 14, 'aria-hidden': 'true' }, patterns('legend', [kind]));
    picture.append(rect('legend', kind, 0.5, 0.5, 21, 13));
    return picture;
  };
  list.replaceChildren(...items.map(([kind, { words }]) => element('li', {}, swatch(kind), words)));
}

/** Fills a table with what each device holds. */
export function fillTable(table, plan) {
  const columns = ['Device', 'Budget', 'Used', 'Weights', 'KV cache', 'Activations', 'Slots', 'Staging', 'Streams from it per token', 'Units'];
  const head = element('tr', {}, ...columns.map((text, index) => element('th', { scope: 'col', class: index > 0 && 'number' }, text)));
  const rows = plan.devices.map((row) => {
    const { device, budget, used, streamed_bytes, n_units } = row;
    const figures = [budget ?? null, sizeOn(plan, row), used.weights, used.kv_cache, used.activations, used.slots, used.staging, streamed_bytes];
    const cells = figures.map((figure) => element('td', { class: 'number' }, figure === null ? 'none' : bytes(figure)));
    return element('tr', {}, element('th', { scope: 'row' }, device), ...cells, element('td', { class: 'number' }, String(n_units)));
  });
  table.replaceChildren(element('thead', {}, head), element('tbody', {}, ...rows));
}

function drawTier(plan, device, axis, width, say) {
  const { budget } = device;
  const blocks = blocksOf(plan, device);
  const held = bytes(sizeOn(plan, device));
  const isBeyond = budget && budget > axis;
  const budgetText = budget ? `${held} of ${bytes(budget)}${isBeyond ? ', which ends beyond this bar' : ''}` : held;
  const head = element('div', { class: 'head' }, element('h3', {}, titleOf(device)), element('p', {}, budgetText));
  const bar = blocks.length > 0 ? drawBar(device, blocks, axis, width, say) : null;
  return element('div', { class: 'tier' }, head, bar, element('p', { class: 'parts' }, partsOf(device)));
}

/** Who computes, in words. */
export function executorsOf({ devices }) {
  return devices.filter(({ n_executed }) => n_executed > 0).map(({ device }) => device).join(' and ');
}

/** A device and what it is called, if it has a name: browsers often keep it to themselves. */
export function titleOf({ device, name }) {
  return name ? `${device} · ${name}` : device;
}

function drawBar({ device, budget }, blocks, axis, width, say) {
  const scale = (width - 2) / axis;
  const id = `tier-${device.replace(':', '-')}`;
  const picture = shape('svg', { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, 'aria-hidden': 'true' });
  picture.append(patterns(id, Object.keys(KINDS)));
  if (budget) {
    const end = Math.min(budget * scale, width - 1);
    picture.append(shape('rect', { x: 1, y: 1, width: end, height: HEIGHT - 2, fill: 'var(--track)' }));
    if (budget <= axis) picture.append(shape('line', { x1: end, x2: end, y1: 0, y2: HEIGHT, stroke: 'var(--ink)', 'stroke-width': 2 }));
  }
  let at = 1;
  const shapes = blocks.map((block) => {
    const part = rect(id, block.kind, at, 5, Math.max(block.size * scale - 1, 0.5), HEIGHT - 10);
    part.append(shape('title', {}, `${block.label}: ${bytes(block.size)}`));
    at += block.size * scale;
    return part;
  });
  picture.append(...shapes);
  const bar = element('div', { class: 'bar', 'data-device': device, tabindex: 0, role: 'group', 'aria-label': `${device}: ${blocks.length} blocks; the arrow keys describe each` }, picture);
  follow(bar, device, blocks, shapes, say);
  return bar;
}

function partsOf({ used, ring, n_units, n_executed, streamed_bytes }) {
  const parts = [
    ['weights', used.weights],
    ['KV', used.kv_cache],
    ['activations', used.activations],
    ['slots', used.slots],
    ['staging', used.staging],
    ['expert cache', used.expert_cache ?? 0],
  ];
  const sizes = parts.filter(([, size]) => size > 0).map(([name, size]) => `${name} ${bytes(size)}`);
  const units = n_units > 0 ? [`holds ${n_units} units`] : [];
  const computes = n_executed > 0 ? [`computes ${n_executed}`] : [];
  const streams = streamed_bytes > 0 ? [`${bytes(streamed_bytes)} stream from it per token`] : [];
  const slots = ring ? [`${ring.n_slots} slots of ${bytes(ring.slot_bytes)}`] : [];
  return [...units, ...computes, ...sizes, ...streams, ...slots].join(' · ');
}

/** Pointer and arrow keys both choose a block, which is marked and described. */
function follow(bar, device, blocks, shapes, say) {
  let chosen = -1;
  const choose = (index) => {
    shapes[chosen]?.removeAttribute('data-chosen');
    chosen = index;
    if (!shapes[index]) return;
    shapes[index].setAttribute('data-chosen', '');
    say(`${device}: ${blocks[index].label}, ${bytes(blocks[index].size)}, ${KINDS[blocks[index].kind].words}`);
  };
  const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -Infinity, End: Infinity };
  bar.addEventListener('keydown', (event) => {
    if (!(event.key in steps) || blocks.length === 0) return;
    event.preventDefault();
    choose(Math.min(Math.max(chosen + steps[event.key], 0), blocks.length - 1));
  });
  bar.addEventListener('pointerover', (event) => {
    const index = shapes.indexOf(event.target);
    if (index >= 0) choose(index);
  });
  bar.addEventListener('blur', () => choose(-1));
  bar.addEventListener('pointerleave', () => choose(-1));
}

/** All units from the first layer to the last as one strip: where each lives, at a glance. */
function drawStrip(plan, width) {
  const cell = (width - 2) / plan.units.length;
  const picture = shape('svg', { width, height: STRIP, viewBox: `0 0 ${width} ${STRIP}`, role: 'img', 'aria-label': stripInWords(plan) });
  picture.append(patterns('strip', Object.keys(KINDS)));
  for (const [index, unit] of plan.units.entries()) {
    const isResident = unit.execute_on === unit.stored_on || unit.chunks.start === unit.chunks.end;
    const kind = isResident ? 'resident' : unit.stored_on === 'disk' ? 'disk' : 'host';
    const part = rect('strip', kind, 1 + index * cell, 1, Math.max(cell - 1, 0.5), STRIP - 2);
    part.append(shape('title', {}, `${unit.name}: lives on ${unit.stored_on}, computed by ${unit.execute_on}`));
    picture.append(part);
  }
  return element('div', { class: 'tier' }, element('h3', {}, 'Units in the order of the computation'), element('div', { class: 'strip' }, picture));
}

function stripInWords(plan) {
  const counts = plan.devices.map(({ device, n_units }) => `${n_units} on ${device}`);
  return `${plan.units.length} units in the order of the computation: ${counts.join(', ')}`;
}

function rect(id, kind, x, y, width, height) {
  const { colour, pattern } = KINDS[kind];
  const own = `var(--${colour})`;
  if (pattern !== 'frame') return shape('rect', { x, y, width, height, fill: pattern ? `url(#${id}-${kind})` : own });
  return shape('rect', { x: x + 1, y: y + 1, width: Math.max(width - 2, 0.5), height: height - 2, rx: 2, fill: 'var(--panel)', stroke: own, 'stroke-width': 2 });
}

/** The patterns of some kinds, named after the picture that uses them. */
function patterns(id, kinds) {
  return shape('defs', {}, ...kinds.filter((kind) => ![null, 'frame'].includes(KINDS[kind].pattern)).map((kind) => pattern(`${id}-${kind}`, KINDS[kind])));
}

function pattern(id, { colour, pattern: form }) {
  const own = `var(--${colour})`;
  const ground = shape('rect', { width: 8, height: 8, fill: own });
  const line = { stroke: 'var(--panel)', 'stroke-width': 1.5 };
  const marks = {
    stripes: [shape('line', { x1: 0, y1: 0, x2: 0, y2: 8, ...line })],
    crosses: [shape('line', { x1: 0, y1: 0, x2: 0, y2: 8, ...line }), shape('line', { x1: 0, y1: 0, x2: 8, y2: 0, ...line })],
    dots: [shape('circle', { cx: 4, cy: 4, r: 1.3, fill: 'var(--panel)' })],
    lines: [shape('line', { x1: 0, y1: 4, x2: 8, y2: 4, ...line })],
  };
  const turned = form === 'stripes' || form === 'crosses' ? 'rotate(45)' : undefined;
  return shape('pattern', { id, width: 8, height: 8, patternUnits: 'userSpaceOnUse', patternTransform: turned }, ground, ...marks[form]);
}
