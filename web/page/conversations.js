// Conversations in the browser's storage, each under a key of its own. What is stored may be of another version, or damaged: it is
// checked before it is used, and left alone otherwise.

const PREFIX = 'tierflow.chat.';
const SCHEMA = 'tierflow.chat/1';
const TITLE_LENGTH = 60;
const ROLES = ['user', 'assistant'];

/**
 * @typedef {object} Message
 * @property {'user' | 'assistant'} role @property {string} content
 * @property {string} [reasoning] what was thought before it @property {string} [note] how it ended @property {boolean} [isCut]
 *
 * @typedef {object} Conversation
 * @property {string} id @property {number} changed when, in milliseconds @property {string} system @property {string} model
 * @property {Message[]} messages
 */

/** @returns {Conversation} */
export function newConversation() {
  const id = [...crypto.getRandomValues(new Uint8Array(6))].map((byte) => byte.toString(36).padStart(2, '0')).join('');
  return { id, changed: 0, system: '', model: '', messages: [] };
}

/** What a conversation is called: how it begins. */
export function titleOf({ messages }) {
  const [first] = (messages[0]?.content ?? '').trim().split('\n');
  return first.length > TITLE_LENGTH ? `${first.slice(0, TITLE_LENGTH - 1).trimEnd()}…` : first || 'Empty';
}

/** A conversation as a file that people read. */
export function asMarkdown({ system, model, messages }) {
  const parts = messages.map(({ role, content, reasoning }) => {
    const thought = reasoning ? `<details><summary>Reasoning</summary>\n\n${reasoning.trim()}\n\n</details>\n\n` : '';
    return `## ${role === 'user' ? 'You' : model || 'Model'}\n\n${thought}${content.trim()}\n`;
  });
  const rules = system ? [`> ${system.trim().replaceAll('\n', '\n> ')}\n`] : [];
  return [`# ${titleOf({ messages })}\n`, ...rules, ...parts].join('\n');
}

export class Conversations {
  #storage;

  /** @param {Storage} storage */
  constructor(storage) {
    this.#storage = storage;
  }

  /** All of them, the latest first. */
  list() {
    const keys = Array.from({ length: this.#storage.length }, (_, index) => this.#storage.key(index)).filter((key) => key?.startsWith(PREFIX));
    const found = keys.map((key) => this.open(key.slice(PREFIX.length))).filter((conversation) => conversation !== null);
    return found.sort((a, b) => b.changed - a.changed);
  }

  /** @param {string} id @returns {Conversation | null} */
  open(id) {
    try {
      const stored = JSON.parse(this.#storage.getItem(PREFIX + id));
      return isConversation(stored, id) ? { id, changed: stored.changed, system: stored.system, model: stored.model, messages: stored.messages } : null;
    } catch {
      return null;
    }
  }

  /** Keeps it as it is now; one that is empty is not kept. @returns {boolean} whether there was room */
  save(conversation) {
    if (conversation.messages.length === 0) return this.remove(conversation.id);
    conversation.changed = Date.now();
    // An answer of which nothing has come is none.
    const messages = conversation.messages.filter(({ content, reasoning }) => content || reasoning);
    try {
      this.#storage.setItem(PREFIX + conversation.id, JSON.stringify({ schema: SCHEMA, ...conversation, messages }));
      return true;
    } catch {
      return false;
    }
  }

  remove(id) {
    this.#storage.removeItem(PREFIX + id);
    return true;
  }
}

function isConversation(stored, id) {
  const isText = (value) => typeof value === 'string';
  const isMessage = ({ role, content, reasoning, note }) => ROLES.includes(role) && isText(content) && [reasoning, note].every((value) => value === undefined || isText(value));
  return (
    stored?.schema === SCHEMA &&
    stored.id === id &&
    Number.isFinite(stored.changed) &&
    isText(stored.system) &&
    isText(stored.model) &&
    Array.isArray(stored.messages) &&
    stored.messages.every((message) => message && isMessage(message))
  );
}
