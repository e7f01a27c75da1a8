// The page: which model is chosen, which conversation is shown, and which views are notified. Two engines: one plans, one holds the
// model that answers. The address holds both choices, so that reload, Back and links to share lead to the same place.

import { Engine, fromHub, listHub, nameOfUrl, parseHubName } from '../index.js';
import { ChatView } from './chat-view.js';
import { chatsView } from './chats-view.js';
import { Conversations, newConversation } from './conversations.js';
import { byId, showError } from './elements.js';
import { bytes, size } from './format.js';
import { recall, remember } from './hub-memory.js';
import { HubView } from './hub-view.js';
import { storage } from './keep.js';
import { tellStorage, tellWebGpu } from './machine.js';
import { makeRoom, openPanel, watchPanels } from './panels.js';
import { droppedFiles, isDevicesFile } from './pick.js';
import { PlanView } from './plan-view.js';
import { readRoute, writeRoute } from './route.js';
import { RunView, sourceOf } from './run-view.js';
import { TeachView } from './teach-view.js';
import { TimelineView } from './timeline-view.js';

/** A model that may lie beside the page; where it does not, the hub has it. */
const BESIDE = new URL('../models/SmolLM2-135M-Instruct.Q4_1.gguf', import.meta.url).href;
const TRIAL_ON_HUB = 'bartowski/SmolLM2-135M-Instruct-GGUF:Q4_K_M';
const TRIAL_NAME = 'SmolLM2';

const planner = new Engine();
const runner = new Engine();
const conversations = new Conversations(storage);
/** The model that is chosen: `{name, url | parts | files, hub?}`; `hub` is its name on the hub. */
let chosen = null;
/** What the loaded model is called. */
let inUse = null;
/** Where the model for a first try is, and how large. */
let trial = { text: TRIAL_ON_HUB, size: null };

const chat = new ChatView({
  engine: runner,
  onBusy: (isBusy) => {
    if (isBusy) byId('run-said').textContent = '';
    timeline.setBusy(isBusy);
  },
  onDeviceLost: (error) => {
    setLoaded(null);
    run.lost(error);
  },
  onChanged: (conversation) => {
    // One that was deleted while its answer was made.
    if (conversation !== chat.conversation && !conversations.open(conversation.id)) return;
    if (!conversations.save(conversation)) byId('run-said').textContent = 'The browser has no room left for conversations: delete some, or save this one as a file.';
    chats.draw();
    setRoute();
  },
  onNew: startConversation,
  prepare,
});
const chats = chatsView({ conversations, current: () => chat.conversation, onOpen: openConversation, onNew: startConversation });
const timeline = new TimelineView(runner, (size) => chat.setBytesPerToken(size));
const plan = new PlanView(planner, (planned) => {
  run.planChanged(planned);
  if (chosen) setRoute();
});
const run = new RunView({ runner, planner, plan, onLoaded: setLoaded });
const teach = new TeachView({
  runner,
  source: async () => ((await isChosen()) ? run.source : null),
  placement: () => ({ device: plan.options.device, max_memory: plan.options.max_memory }),
  onBegin: () => run.gaveUp(),
  onUse: (adapter) => run.loadWith(adapter),
});
const hub = new HubView({ planner, listHub, freeBytes: async () => (await run.listStored()) && run.freeBytes, onChoose: (model) => choose(model) });

function setLoaded(loaded) {
  document.body.toggleAttribute('data-loaded', loaded !== null);
  byId('bring').textContent = loaded ? 'another model' : 'or bring a model';
  inUse = loaded?.name ?? null;
  showInUse();
  chat.setLoaded(loaded);
  timeline.setLoaded(loaded);
  if (loaded) showView('chat');
}

function showInUse() {
  const name = inUse ?? chosen?.name ?? 'No model yet';
  byId('model-in-use').textContent = name.replace(/\.gguf$/i, '');
}

/** `start` chooses a model, `chat` talks to it. */
function showView(view) {
  document.body.dataset.view = view;
  makeRoom();
  byId('open-models').setAttribute('aria-pressed', String(view === 'start'));
}

/** Puts the address right; with `isNew` Back leads to where it was before. */
function setRoute({ isNew = false } = {}) {
  const { files, hub: name, url } = chosen ?? {};
  const model = files ? { file: chosen.name } : { model: name ?? url };
  const id = chat.conversation.messages.length > 0 ? chat.conversation.id : undefined;
  const address = writeRoute({ ...model, ...(chosen ? plan.wishes : {}), chat: id });
  if (address === location.hash) return;
  history[isNew ? 'pushState' : 'replaceState'](null, '', address || location.pathname + location.search);
}

/**
 * Reads the headers of a model, from this browser's storage if it is there, and shows what can be known of it.
 * @param {object} model @param {{wishes?: object, isNew?: boolean, isSeen?: boolean}} [options] of its plan; whether Back leads to what
 *   was chosen before; whether it waits to be looked at
 */
async function choose(model, { wishes, isNew = true, isSeen = true } = {}) {
  const source = sourceOf(model, true);
  hub.rest();
  showError(byId('model-error'));
  byId('model-said').textContent = 'Reading headers…';
  try {
    const inspection = await planner.inspect(source);
    byId('model-facts').textContent = factsOf(inspection);
    const isOther = chosen !== null && JSON.stringify(chosen) !== JSON.stringify(model);
    chosen = model;
    if (model.hub) remember(model);
    showInUse();
    byId('open-plan').disabled = false;
    setRoute({ isNew: isNew && (isOther || !location.hash) });
    await run.show(model, inspection);
    await plan.show(source, inspection, wishes);
    setSending();
    if (isSeen) byId('run').scrollIntoView({ block: 'nearest' });
    return true;
  } catch (error) {
    // What was planned for another model is none of this one's.
    byId('model-facts').textContent = '';
    byId('open-plan').disabled = true;
    chosen = null;
    showInUse();
    plan.hide();
    run.hide();
    showView('start');
    showError(byId('model-error'), error);
    return false;
  } finally {
    byId('model-said').textContent = '';
  }
}

function factsOf({ config, n_parameters, size_bytes, n_tensors, bytes_by_dtype }) {
  const dtypes = Object.entries(bytes_by_dtype).map(([dtype, size]) => `${dtype} ${bytes(size)}`);
  const extent = `${(n_parameters / 1e6).toFixed(1)} M parameters, ${bytes(size_bytes)} in ${n_tensors} tensors (${dtypes.join(', ')})`;
  return `${config.name || 'Unnamed'}: ${extent}, ${config.n_layers} layers, context ${config.context_length}.`;
}

async function chooseFiles(list) {
  const files = [...list];
  if (files.length === 0) return;
  if (await isDevicesFile(files)) {
    openPanel('plan-panel');
    return plan.useDevicesFile(files[0]);
  }
  const name = files.length === 1 ? files[0].name : files[0].webkitRelativePath?.split('/')[0] || 'the folder';
  showView('start');
  hub.hide();
  await choose({ files, name });
}

/** Opens what somebody has typed: an address, or a name on the hub, of which one quantisation may be asked for. */
async function chooseText(text, options) {
  showView('start');
  const named = parseHubName(text);
  if (!named) return chooseUrl(text, undefined, options);
  if (named.file) {
    hub.hide();
    return chooseUrl((await fromHub(text)).url, undefined, options);
  }
  showError(byId('model-error'));
  const known = recall(`${named.repo}:${named.quant}`);
  if (known && run.isKept(known)) return choose(known, options);
  const models = await hub.show(text);
  if (!named.quant || models.length === 0) return false;
  const model = models.find(({ quant }) => quant.toUpperCase() === named.quant.toUpperCase());
  if (model) return choose({ name: `${named.repo.split('/')[1]} ${model.quant}`, hub: `${named.repo}:${model.quant}`, parts: model.source }, options);
  showError(byId('model-error'), { name: 'InvalidArgumentError', message: `${named.repo} has no ${named.quant}; choose another one below.` });
  return false;
}

async function chooseUrl(text, name, options) {
  let url;
  try {
    url = new URL(text, location.href).href;
  } catch {
    showError(byId('model-error'), { name: 'InvalidArgumentError', message: `\`${text}\` is no address and no name; write org/name, or https://… with the path of a .gguf file.` });
    return false;
  }
  hub.hide();
  return choose({ url, name: name ?? nameOfUrl(url) }, options);
}

/** Chooses the small model where none is chosen. Says whether one is. */
async function isChosen() {
  return chosen !== null || chooseText(trial.text);
}

/** Loads a model where none is loaded: the one that is chosen, or the small one. Says whether it could. */
async function prepare() {
  if (teach.isBusy) {
    openPanel('teach-panel');
    byId('run-said').textContent = 'The model is learning; it can be asked once it is done, or stopped.';
    return false;
  }
  return (await isChosen()) && run.load();
}

function startConversation() {
  if (chat.conversation?.messages.length === 0) return byId('prompt').focus();
  chat.show(newConversation());
  setRoute({ isNew: true });
  chats.draw();
  if (runner.loaded) showView('chat');
  return byId('prompt').focus();
}

function openConversation(id) {
  const conversation = conversations.open(id);
  if (!conversation || id === chat.conversation.id) return;
  chat.show(conversation);
  setRoute({ isNew: true });
  chats.draw();
  showView('chat');
}

/** Goes where the address leads. A model that is stored is loaded at once; others wait for a press. */
async function restore() {
  const { model, file, chat: id, ...wishes } = readRoute(location.hash);
  if (!chat.conversation || (id ?? '') !== (chat.conversation.messages.length > 0 ? chat.conversation.id : '')) {
    chat.show((id && conversations.open(id)) || newConversation());
    chats.draw();
  }
  showView(chat.conversation.messages.length > 0 || runner.loaded ? 'chat' : 'start');
  if (file && !runner.loaded && chosen?.name !== file) byId('run-said').textContent = `Choose ${file} again to go on: a page may not open files by itself.`;
  if (!model) return;
  if (chosen && model === (chosen.hub ?? chosen.url)) return void (await plan.apply(wishes));
  const isChosen = await chooseText(model, { wishes, isNew: false });
  showView(chat.conversation.messages.length > 0 ? 'chat' : 'start');
  if (isChosen && run.isStored) await run.load();
}

/** The box says what sending does. */
function setSending() {
  const cost = trial.size && !trial.isStored ? ` (${size(trial.size)})` : '';
  byId('prompt').placeholder = runner.loaded || chosen ? 'Ask something' : `Ask ${TRIAL_NAME}${cost}`;
}

/** Looks for the model for a first try: in the browser's storage, beside the page, and otherwise on the hub. */
async function offerTrial(stored) {
  const isBesideKept = stored.some(({ url }) => url === BESIDE);
  const head = isBesideKept ? null : await fetch(BESIDE, { method: 'HEAD' }).catch(() => null);
  if (isBesideKept || head?.ok) trial = { text: BESIDE, size: Number(head?.headers.get('Content-Length')) || null };
  const onHub = recall(TRIAL_ON_HUB);
  trial.isStored = isBesideKept || (trial.text === TRIAL_ON_HUB && onHub !== null && run.isKept(onHub));
  byId('try').textContent = trial.isStored ? `Go on with ${TRIAL_NAME}` : `Try it: ${TRIAL_NAME}${trial.size ? `, ${size(trial.size)}` : ''}`;
  byId('try-facts').textContent = trial.isStored ? 'A small model. It is on this computer already.' : 'A small model, to see how it goes. It is downloaded once.';
  setSending();
}

function listen() {
  for (const kind of ['file', 'folder']) {
    byId(`choose-${kind}`).addEventListener('click', () => byId(kind).click());
    byId(kind).addEventListener('change', async ({ target }) => {
      await chooseFiles(target.files);
      target.value = '';
    });
  }
  byId('url-form').addEventListener('submit', (event) => {
    event.preventDefault();
    const text = byId('url').value.trim();
    if (!text) return byId('url').focus();
    chooseText(text);
  });
  byId('try').addEventListener('click', async () => (await chooseText(trial.text, { isSeen: false })) && run.load());
  byId('open-models').addEventListener('click', () => showView(document.body.dataset.view === 'start' && (runner.loaded || chat.conversation.messages.length > 0) ? 'chat' : 'start'));
  byId('show-plan').addEventListener('click', () => openPanel('plan-panel'));
  run.onUse = async (model) => (await (model.url ? chooseUrl(model.url, model.name, { isSeen: false }) : choose(model, { isSeen: false }))) && run.load();
  document.addEventListener('dragover', (event) => {
    event.preventDefault();
    document.body.classList.add('dragging');
  });
  document.addEventListener('dragleave', (event) => event.relatedTarget ?? document.body.classList.remove('dragging'));
  document.addEventListener('drop', async (event) => {
    event.preventDefault();
    document.body.classList.remove('dragging');
    await chooseFiles(await droppedFiles(event.dataTransfer));
  });
  addEventListener('popstate', restore);
  watchPanels();
}

async function begin() {
  listen();
  chat.show(newConversation());
  chats.draw();
  tellWebGpu();
  const stored = await run.listStored();
  tellStorage(run.freeBytes);
  offerTrial(stored);
  await restore();
}

begin();
navigator.serviceWorker?.register(new URL('../sw.js', import.meta.url)).catch(() => {});
