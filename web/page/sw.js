// The page without a network: its own files come from the network where it answers, and from what was kept of them where it does
// not. Models are no business of this script: they lie in the browser's storage, and nothing of other sites passes through here.
// `FILES`, the addresses of all files, is written above this by the bundler.

const CACHE = 'tierflow-page';
/** Of the two kinds of wasm the package fetches one: that for threads where workers may share memory. */
const KIND = self.crossOriginIsolated && navigator.hardwareConcurrency > 1 ? 'tierflow_threads_bg.wasm' : 'tierflow_bg.wasm';
const known = new Set(FILES.map((file) => new URL(file, self.location).href));

self.addEventListener('install', (event) => event.waitUntil(keepAll()));
self.addEventListener('activate', (event) => event.waitUntil(self.clients.claim()));
self.addEventListener('fetch', (event) => {
  const { method, url } = event.request;
  const [address] = url.split(/[?#]/);
  if (method === 'GET' && known.has(address)) event.respondWith(answer(event.request, address));
});

async function keepAll() {
  const cache = await caches.open(CACHE);
  const wanted = [...known].filter((url) => !url.endsWith('.wasm') || url.endsWith(`/${KIND}`));
  await cache.addAll(wanted.map((url) => new Request(url, { cache: 'no-cache' })));
  const kept = await cache.keys();
  await Promise.all(kept.filter(({ url }) => !known.has(url)).map((request) => cache.delete(request)));
  await self.skipWaiting();
}

async function answer(request, address) {
  const cache = await caches.open(CACHE);
  try {
    const response = await fetch(request);
    if (response.ok) await cache.put(address, response.clone());
    return response;
  } catch (error) {
    const kept = await cache.match(address);
    if (kept) return kept;
    throw error;
  }
}
