// What is known of a stored model, written beside it: where it comes from, how much of it is safely on disk, and whether
// that is all of it. Bytes beyond what the journal vouches for do not count, so that a tab may be closed at any moment.

/** Version of the format; entries of another version are ignored and downloaded again. */
const SCHEMA = 'tierflow.stored/1';
const FILE = 'entry.json';

/**
 * @typedef {object} Entry
 * @property {string} url where it comes from
 * @property {string} name
 * @property {number | null} size bytes of the whole file, as the server announced it
 * @property {string | null} mark what identifies this version of the file: its ETag, or when it was modified
 * @property {number} done bytes that are safely stored
 * @property {boolean} complete
 */

/** The journal of a folder; `null` where there is none that can be believed. */
export async function readEntry(folder) {
  try {
    const file = await (await folder.getFileHandle(FILE)).getFile();
    const entry = JSON.parse(await file.text());
    return isEntry(entry) ? entry : null;
  } catch {
    return null;
  }
}

/** Replaces the journal: a reader sees the old one or the new one, or one that is not believed. */
export function writeEntry(folder, entry) {
  return replaceFile(folder, FILE, JSON.stringify({ schema: SCHEMA, ...entry }));
}

/** Writes `text` into a file of `folder`, in place of what is there. */
export async function replaceFile(folder, name, text) {
  const handle = await folder.getFileHandle(name, { create: true });
  if (handle.createWritable) {
    const writable = await handle.createWritable();
    await writable.write(text);
    return writable.close();
  }
  // Older Safari has only this, which is not replaced at once.
  const access = await handle.createSyncAccessHandle();
  access.truncate(0);
  access.write(new TextEncoder().encode(text), { at: 0 });
  access.flush();
  access.close();
}

function isEntry(entry) {
  const isSize = (value) => Number.isSafeInteger(value) && value >= 0;
  return (
    entry?.schema === SCHEMA &&
    typeof entry.url === 'string' &&
    typeof entry.name === 'string' &&
    (entry.size === null || isSize(entry.size)) &&
    isSize(entry.done) &&
    (!entry.complete || entry.done === entry.size)
  );
}
