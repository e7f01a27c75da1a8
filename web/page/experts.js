// What an expert cache was asked for: a column for each layer, from what was there up to what was brought or computed elsewhere. The sums
// are pure; the picture is SVG.

import { shape } from './elements.js';
import { bytes, percent } from './format.js';

const [WIDTH, HEIGHT] = [420, 72];
const COUNTS = ['n_hits', 'n_misses', 'n_on_host', 'uploaded'];
const NONE = { n_hits: 0, n_misses: 0, n_on_host: 0, uploaded: 0 };

/** What layers were asked for since they had `before`. */
export function since(layers, before) {
  const had = new Map(before.map((layer) => [layer.name, layer]));
  return layers.map((layer) => ({ ...layer, ...Object.fromEntries(COUNTS.map((count) => [count, layer[count] - (had.get(layer.name) ?? NONE)[count]])) }));
}

/** The sums in words; `null` where nothing was asked for. */
export function expertsInWords(layers) {
  const sum = Object.fromEntries(COUNTS.map((count) => [count, layers.reduce((all, layer) => all + layer[count], 0)]));
  const asked = sum.n_hits + sum.n_misses;
  if (asked === 0) return null;
  const elsewhere = sum.n_on_host > 0 ? `, ${percent(sum.n_on_host / asked)} computed by the processor` : '';
  return `${percent(sum.n_hits / asked)} of ${asked} experts were in the cache${elsewhere}; ${bytes(sum.uploaded)} were brought.`;
}

/** The columns. */
export function drawExperts(layers, colours) {
  const width = WIDTH / Math.max(layers.length, 1);
  const picture = shape('svg', { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, width: '100%', role: 'img', 'aria-label': expertsInWords(layers) ?? 'Nothing was asked for yet' });
  for (const [index, layer] of layers.entries()) {
    const asked = Math.max(layer.n_hits + layer.n_misses, 1);
    const shares = [[layer.n_hits, colours.compute, 'in the cache'], [layer.n_misses - layer.n_on_host, colours.upload, 'brought'], [layer.n_on_host, colours.other, 'computed by the processor']];
    let y = HEIGHT;
    for (const [count, fill, words] of shares) {
      const height = (HEIGHT * count) / asked;
      y -= height;
      picture.append(shape('rect', { x: index * width, y, width: Math.max(width - 1, 0.5), height, fill }, shape('title', {}, `${layer.name}: ${count} ${words}`)));
    }
  }
  return picture;
}
