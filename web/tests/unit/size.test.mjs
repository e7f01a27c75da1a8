// The size of what a browser fetches. `node tests/size.mjs` tells what is in it.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { brotliCompressSync, constants } from 'node:zlib';

const MOST_BYTES = 3e6;
/** Less than servers use for files that do not change, and a tenth of the time. */
const QUALITY = 9;

for (const name of ['tierflow_bg.wasm', 'tierflow_threads_bg.wasm']) {
  test(`${name}, of which a page fetches one, takes at most 3 MB after brotli`, () => {
    const wasm = readFileSync(new URL(`../../dist/wasm/${name}`, import.meta.url));
    const { length } = brotliCompressSync(wasm, { params: { [constants.BROTLI_PARAM_QUALITY]: QUALITY } });
    console.log(`# ${wasm.length} bytes, ${length} after brotli`);
    assert.ok(length <= MOST_BYTES, `${length} bytes`);
  });
}
