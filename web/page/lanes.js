// What the spans of a trace say: which lanes are busy, how much of the moving is hidden, what bounds the rate. Pure.

/** The lanes that are shown, from slow memory to the result. */
export const LANES = [
  { lane: 'fetch', title: 'disk', colour: 'disk' },
  { lane: 'upload', title: 'upload', colour: 'upload' },
  { lane: 'compute', title: 'compute', colour: 'compute' },
  { lane: 'readback', title: 'readback', colour: 'kv' },
];

/** Spans of the last `n` forwards. */
export function lastForwards(spans, n) {
  const last = spans.reduce((latest, span) => Math.max(latest, span.forward), -1);
  return spans.filter((span) => span.forward > last - n);
}

/** Times in which at least one of the spans goes on, as `[start, end]` in order. */
export function union(spans) {
  const sorted = spans.map((span) => [span.start_secs, span.end_secs]).sort((a, b) => a[0] - b[0]);
  const times = [];
  for (const [start, end] of sorted) {
    const last = times.at(-1);
    if (last && start <= last[1]) last[1] = Math.max(last[1], end);
    else times.push([start, end]);
  }
  return times;
}

/** Times between the spans of a lane, from the first to the last of all spans. */
export function gaps(times, from, to) {
  const edges = [from, ...times.flat(), to];
  return edges.flatMap((start, index) => (index % 2 === 0 && edges[index + 1] > start ? [[start, edges[index + 1]]] : []));
}

/**
 * Seconds of each lane, the share of moving that happens while something computes, and what is busy for longest.
 * @returns {{from: number, to: number, busy: Record<string, number>, overlapped: number, bound: string, bytesPerForward: number}}
 */
export function summarise(spans) {
  const from = Math.min(...spans.map((span) => span.start_secs));
  const to = Math.max(...spans.map((span) => span.end_secs));
  const times = Object.fromEntries(LANES.map(({ lane }) => [lane, union(spans.filter((span) => span.lane === lane))]));
  const busy = Object.fromEntries(LANES.map(({ lane }) => [lane, length(times[lane])]));
  const moving = union(spans.filter((span) => span.lane === 'fetch' || span.lane === 'upload'));
  const hidden = length(moving) + busy.compute - length(union(spans.filter((span) => ['fetch', 'upload', 'compute'].includes(span.lane))));
  const bound = LANES.map(({ lane }) => lane).reduce((most, lane) => (busy[lane] > busy[most] ? lane : most), 'compute');
  const uploads = spans.filter((span) => span.lane === 'upload');
  const nForwards = new Set(spans.map((span) => span.forward)).size;
  return {
    from,
    to,
    busy,
    overlapped: moving.length > 0 ? hidden / length(moving) : 0,
    bound: LANES.find(({ lane }) => lane === bound).title,
    bytesPerForward: uploads.reduce((sum, span) => sum + span.size_bytes, 0) / Math.max(1, nForwards),
  };
}

function length(times) {
  return times.reduce((sum, [start, end]) => sum + end - start, 0);
}
