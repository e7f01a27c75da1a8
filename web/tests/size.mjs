// What the wasm takes on its way to a browser, and what is in it by crate: `node tests/size.mjs [BUILT.wasm]`, after
// `cargo xtask web build`. The file that the compiler left still has the names that the bundled one has lost.

import { existsSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { brotliCompressSync, constants } from 'node:zlib';

const web = dirname(dirname(fileURLToPath(import.meta.url)));
const target = process.env.CARGO_TARGET_DIR ?? join(web, '../target');
const built = process.argv[2] ?? join(target, 'wasm32-unknown-unknown/web/tierflow_web.wasm');
/** Crates with less than this share are summed up. */
const LEAST_SHARE = 0.01;
const SECTION = { CUSTOM: 0, IMPORT: 2, CODE: 10, DATA: 11 };

/** Tells the sizes, and the contents where the compiler's file is still there. */
function main() {
  for (const path of ['wasm/tierflow_bg.wasm', 'wasm/tierflow_threads_bg.wasm', 'wasm/tierflow.js']) {
    const bytes = readFileSync(join(web, 'dist', path));
    const compressed = brotliCompressSync(bytes, { params: { [constants.BROTLI_PARAM_QUALITY]: 11 } });
    console.log(`dist/${path}: ${bytes.length} bytes, ${compressed.length} after brotli`);
  }
  if (existsSync(built)) printContents(contentsOf(readFileSync(built)));
}

/** Bytes by crate: of a function, what its body takes; `data` is strings, tables and shaders. */
function contentsOf(bytes) {
  const sizes = new Map();
  const add = (name, size) => sizes.set(name, (sizes.get(name) ?? 0) + size);
  const sections = [...sectionsOf(bytes)];
  const names = namesOf(sections);
  const nImports = sections.filter(({ id }) => id === SECTION.IMPORT).reduce((sum, section) => sum + functionImportsOf(section.reader), 0);
  for (const { id, size, reader } of sections) {
    if (id === SECTION.DATA) add('data', size);
    if (id !== SECTION.CODE) continue;
    const n = reader.number();
    for (let index = 0; index < n; index += 1) {
      const bodySize = reader.number();
      reader.skip(bodySize);
      add(crateOf(names.get(nImports + index) ?? ''), bodySize);
    }
  }
  return sizes;
}

function printContents(sizes) {
  const total = [...sizes.values()].reduce((sum, size) => sum + size, 0);
  const [large, small] = [[], []];
  for (const item of [...sizes].sort((a, b) => b[1] - a[1])) (item[1] >= LEAST_SHARE * total ? large : small).push(item);
  const rest = small.reduce((sum, [, size]) => sum + size, 0);
  for (const [name, size] of [...large, [`${small.length} others`, rest]]) {
    console.log(`${name.padEnd(24)} ${(size / 1024).toFixed(0).padStart(6)} KiB ${((100 * size) / total).toFixed(1).padStart(5)} %`);
  }
}

/** The crate of a mangled name: the first path in it; of an impl, that of its type where that is no primitive. */
function crateOf(symbol) {
  const legacy = /^_ZN(\d+)/.exec(symbol);
  if (legacy) {
    const first = symbol.slice(legacy[0].length, legacy[0].length + Number(legacy[1]));
    // `_$LT$some..path$u20$as…`: escapes and small words stand before the path.
    const crate = /^(?:_?(?:\$\w+?\$)+(?:(?:mut|dyn|impl|const)\$u20\$)*)?([a-z]\w*)(?:\.\.|$)/.exec(first)?.[1];
    return crate ?? 'core';
  }
  // Crates stand in the new names as `Cs<hash>_<length><name>`.
  const found = /Cs[0-9A-Za-z]*_(\d+)/.exec(symbol);
  if (!found) return 'unnamed';
  const begin = found.index + found[0].length;
  return symbol.slice(begin, begin + Number(found[1]));
}

function* sectionsOf(bytes) {
  const all = new Reader(bytes, 8);
  while (!all.isDone) {
    const id = all.byte();
    const size = all.number();
    yield { id, size, reader: new Reader(bytes.subarray(all.at, all.at + size)) };
    all.skip(size);
  }
}

/** Names of functions by their index. */
function namesOf(sections) {
  const names = new Map();
  for (const { id, reader } of sections) {
    if (id !== SECTION.CUSTOM || reader.text() !== 'name') continue;
    while (!reader.isDone) {
      const kind = reader.byte();
      const size = reader.number();
      if (kind !== 1) {
        reader.skip(size);
        continue;
      }
      for (let left = reader.number(); left > 0; left -= 1) names.set(reader.number(), reader.text());
    }
  }
  return names;
}

function functionImportsOf(reader) {
  let functions = 0;
  for (let left = reader.number(); left > 0; left -= 1) {
    reader.text();
    reader.text();
    if (reader.byte() !== 0) throw new Error('the wasm imports more than functions');
    reader.number();
    functions += 1;
  }
  return functions;
}

/** Reads wasm's binary format. */
class Reader {
  constructor(bytes, at = 0) {
    this.bytes = bytes;
    this.at = at;
  }

  get isDone() {
    return this.at >= this.bytes.length;
  }

  byte() {
    this.at += 1;
    return this.bytes[this.at - 1];
  }

  /** An unsigned LEB128. */
  number() {
    for (let value = 0, shift = 1; ; shift *= 128) {
      const byte = this.byte();
      value += (byte & 127) * shift;
      if (byte < 128) return value;
    }
  }

  text() {
    const length = this.number();
    this.skip(length);
    return this.bytes.toString('utf8', this.at - length, this.at);
  }

  skip(length) {
    this.at += length;
  }
}

main();
