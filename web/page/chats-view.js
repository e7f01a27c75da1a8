// The list of conversations: open, delete, save as a file.

import { byId, element, saveAs } from './elements.js';
import { asMarkdown, titleOf } from './conversations.js';

/**
 * @param {{conversations: import('./conversations.js').Conversations, current: () => object, onOpen: (id: string) => void, onNew: () => void}} parts
 *   `current` is the conversation that is shown
 */
export function chatsView({ conversations, current, onOpen, onNew }) {
  byId('new-chat').addEventListener('click', onNew);
  byId('export').addEventListener('click', () => {
    const conversation = current();
    saveAs(`${titleOf(conversation).replace(/[^\p{L}\p{N} -]/gu, '').trim() || 'conversation'}.md`, 'text/markdown', asMarkdown(conversation));
  });
  const remove = (conversation) => {
    if (!confirm(`Delete “${titleOf(conversation)}” from this browser?`)) return;
    conversations.remove(conversation.id);
    if (conversation.id === current().id) onNew();
    draw();
  };
  const item = (conversation) => {
    const title = titleOf(conversation);
    const isCurrent = conversation.id === current().id;
    const when = new Date(conversation.changed).toLocaleString();
    const open = element('button', { type: 'button', class: 'plain title', title: when, 'aria-current': isCurrent && 'true', onclick: () => onOpen(conversation.id) }, title);
    return element('li', {}, open, element('button', { type: 'button', class: 'plain', 'aria-label': `Delete “${title}”`, onclick: () => remove(conversation) }, '✕'));
  };
  function draw() {
    byId('export').disabled = current().messages.length === 0;
    const list = conversations.list();
    byId('chats').replaceChildren(...list.map(item));
    byId('chats-facts').textContent = list.length > 0 ? 'Kept in this browser alone.' : 'None yet. What you write is kept in this browser alone.';
  }
  return { draw };
}
