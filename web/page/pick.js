// Files that are dropped: a file, several, or folders, as one list.

/**
 * All files of a drop. Folders are read with what is directly in them, which is where a model's files lie.
 * @param {DataTransfer} transfer
 */
export async function droppedFiles(transfer) {
  // Entries must be taken before the first pause: the list is emptied after the event.
  const entries = [...transfer.items].filter((item) => item.kind === 'file').map((item) => item.webkitGetAsEntry?.() ?? item.getAsFile());
  const lists = await Promise.all(entries.map(filesOf));
  return lists.flat();
}

async function filesOf(entry) {
  if (entry instanceof File) return [entry];
  if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
  const children = await readFolder(entry.createReader());
  return (await Promise.all(children.filter((child) => child.isFile).map(filesOf))).flat();
}

/** A folder's reader gives its entries in portions; an empty one is the last. */
async function readFolder(reader) {
  const all = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (some.length === 0) return all;
    all.push(...some);
  }
}

/** Whether a list is one description of a machine rather than a model. */
export async function isDevicesFile(files) {
  if (files.length !== 1 || !/\.json$/i.test(files[0].name) || files[0].size > 4 << 20) return false;
  return /"schema"\s*:\s*"tierflow\.devices\//.test(await files[0].text());
}
