// The picture of a trace: one row per lane, the last tokens from left to right. Self-contained SVG, so that it can be saved.

import { shape } from './elements.js';
import { bytes, duration } from './format.js';
import { LANES, gaps, lastForwards, summarise, union } from './lanes.js';

const ROW = 34;
const BAR = 22;
const TITLE = 74;
const FOOT = 22;
/** Idle times of the device that computes are hatched if they are wider than this. */
const MIN_GAP = 1.5;

/**
 * @param {object[]} spans of a trace
 * @param {{width: number, nForwards: number, colours: Record<string, string>, nameOf: (chunk: number) => string}} options
 * @returns {{picture: SVGElement, summary: object} | null} nothing where nothing was traced
 */
export function drawTimeline(spans, { width, nForwards, colours, nameOf }) {
  const shown = lastForwards(spans, nForwards).filter((span) => LANES.some(({ lane }) => lane === span.lane));
  if (shown.length === 0) return null;
  const summary = summarise(shown);
  const seconds = Math.max(summary.to - summary.from, 1e-9);
  const x = (secs) => TITLE + ((secs - summary.from) / seconds) * (width - TITLE - 1);
  const height = LANES.length * ROW + FOOT;
  const picture = shape('svg', {
    width,
    height,
    viewBox: `0 0 ${width} ${height}`,
    role: 'img',
    'aria-label': describe(summary),
    'font-family': 'system-ui, sans-serif',
    'font-size': 13,
  });
  picture.append(hatch(colours), shape('rect', { width, height, fill: colours.panel }));
  picture.append(...tokenLines(shown, x, height - FOOT, colours));
  for (const [row, { lane, title, colour }] of LANES.entries()) {
    const y = row * ROW;
    picture.append(
      shape('text', { x: 0, y: y + ROW / 2 + 4, fill: colours.ink }, title),
      shape('line', { x1: TITLE, x2: width, y1: y + ROW - 1, y2: y + ROW - 1, stroke: colours.line }),
    );
    const own = shown.filter((span) => span.lane === lane);
    if (lane === 'compute') picture.append(...idle(own, summary, x, y));
    picture.append(...own.map((span) => block(span, x, y, colours[colour], nameOf)));
  }
  picture.append(
    shape('text', { x: TITLE, y: height - 6, fill: colours.faint }, '0'),
    shape('text', { x: width - 1, y: height - 6, fill: colours.faint, 'text-anchor': 'end' }, duration(seconds)),
  );
  return { picture, summary };
}

/** The colours of the page as it looks now. */
export function coloursOf(root = document.documentElement) {
  const style = getComputedStyle(root);
  const names = ['panel', 'ink', 'faint', 'line', 'track', 'compute', 'upload', 'disk', 'kv', 'other', 'accent'];
  return Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}

function describe({ busy, from, to }) {
  const parts = LANES.map(({ lane, title }) => `${title} busy for ${duration(busy[lane])}`);
  return `Timeline of ${duration(to - from)}: ${parts.join(', ')}`;
}

function block({ lane, chunk, start_secs, end_secs, size_bytes }, x, y, fill, nameOf) {
  const left = x(start_secs);
  const name = chunk === null || chunk === undefined ? lane : nameOf(chunk);
  const title = shape('title', {}, `${name}: ${duration(end_secs - start_secs)}${size_bytes ? `, ${bytes(size_bytes)}` : ''}`);
  return shape('rect', { x: left.toFixed(1), y: y + (ROW - BAR) / 2, width: Math.max(0.6, x(end_secs) - left).toFixed(1), height: BAR, fill }, title);
}

function idle(spans, { from, to }, x, y) {
  const wide = gaps(union(spans), from, to).filter(([start, end]) => x(end) - x(start) >= MIN_GAP);
  return wide.map(([start, end]) => {
    const box = { x: x(start).toFixed(1), y: y + (ROW - BAR) / 2, width: (x(end) - x(start)).toFixed(1), height: BAR };
    return shape('rect', { ...box, fill: 'url(#idle)' }, shape('title', {}, `idle for ${duration(end - start)}`));
  });
}

/** A line where each forward begins. */
function tokenLines(spans, x, height, colours) {
  const starts = new Map();
  for (const span of spans) starts.set(span.forward, Math.min(starts.get(span.forward) ?? Infinity, span.start_secs));
  return [...starts.values()].map((start) =>
    shape('line', { x1: x(start), x2: x(start), y1: 0, y2: height, stroke: colours.faint, 'stroke-dasharray': '2 3' }),
  );
}

function hatch(colours) {
  const pattern = { id: 'idle', width: 6, height: 6, patternUnits: 'userSpaceOnUse', patternTransform: 'rotate(45)' };
  return shape('defs', {}, shape('pattern', pattern, shape('rect', { width: 6, height: 6, fill: colours.track }), shape('rect', { width: 1.5, height: 6, fill: colours.line })));
}
