// Figures as people read and write them, as the command line has them.

const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];

/** `41943040` as `40.0 MiB`. */
export function bytes(value) {
  const step = Math.min(Math.max(0, Math.floor(Math.log2(Math.max(value, 1)) / 10)), UNITS.length - 1);
  return step === 0 ? `${value} B` : `${(value / 2 ** (10 * step)).toFixed(1)} ${UNITS[step]}`;
}

/** `40 MiB`, `2g`, `1.5 GiB`, `4096` as bytes; `null` for what is no size. */
export function parseBytes(text) {
  const match = /^\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?b)?\s*$/i.exec(text);
  if (!match) return null;
  const power = ['', 'k', 'm', 'g', 't'].indexOf(match[2].toLowerCase());
  const isDecimal = match[3]?.toLowerCase() === 'b' && power > 0;
  return Math.round(Number(match[1]) * (isDecimal ? 1000 : 1024) ** power);
}

/** `3.9 t/s`. */
export function tokensPerSec(rate) {
  return `${rate >= 100 ? rate.toFixed(0) : rate.toFixed(1)} t/s`;
}

/** `250 ms`, `1.24 s`. */
export function duration(secs) {
  if (secs >= 1) return `${secs.toFixed(2)} s`;
  return secs >= 0.01 ? `${(secs * 1000).toFixed(0)} ms` : `${(secs * 1000).toFixed(2)} ms`;
}

/** Time that is left, as people say it: `45 s`, `3 min`, `2.5 h`. */
export function timeLeft(secs) {
  if (secs < 90) return `${Math.ceil(secs)} s`;
  return secs < 5400 ? `${Math.round(secs / 60)} min` : `${(secs / 3600).toFixed(1)} h`;
}

/** `43 %`. */
export function percent(share) {
  return `${(share * 100).toFixed(0)} %`;
}

/** `98362432` as `98 MB`: sizes as shops and disks have them, for what is not counted byte by byte. */
export function size(value) {
  const units = ['bytes', 'kB', 'MB', 'GB', 'TB'];
  const step = Math.min(Math.floor(Math.log10(Math.max(value, 1)) / 3), units.length - 1);
  const amount = value / 1000 ** step;
  return `${step > 2 && amount < 100 ? amount.toFixed(1) : Math.round(amount)} ${units[step]}`;
}
