// Panels beside the chat: at most one at a side, opened by its button. On narrow screens a panel takes the place of the chat.

import { byId } from './elements.js';

const PANELS = { 'open-chats': 'chats-panel', 'open-plan': 'plan-panel', 'open-activity': 'activity-panel', 'open-teach': 'teach-panel' };

/** Lets the buttons open and close their panels, and the key Escape close them. */
export function watchPanels() {
  for (const [button, panel] of Object.entries(PANELS)) {
    byId(button).addEventListener('click', () => (byId(panel).hidden ? openPanel(panel) : closePanel(panel)));
    byId(panel).querySelector('.close').addEventListener('click', () => closePanel(panel));
    byId(panel).addEventListener('keydown', (event) => event.key === 'Escape' && closePanel(panel));
  }
}

/** Opens one; the others close, so that the chat keeps its room. */
export function openPanel(panel) {
  for (const other of Object.values(PANELS)) show(other, other === panel);
  byId(panel).querySelector('.close').focus({ preventScroll: true });
}

export function closePanel(panel) {
  const hadFocus = byId(panel).contains(document.activeElement);
  show(panel, false);
  if (hadFocus) buttonOf(panel).focus();
}

/** Closes all of them where they hide the chat. */
export function makeRoom() {
  if (matchMedia('(max-width: 60rem)').matches) for (const panel of Object.values(PANELS)) show(panel, false);
}

function show(panel, isOpen) {
  byId(panel).hidden = !isOpen;
  buttonOf(panel).setAttribute('aria-expanded', String(isOpen));
  document.body.toggleAttribute('data-panel', Object.values(PANELS).some((name) => !byId(name).hidden));
}

function buttonOf(panel) {
  return byId(Object.keys(PANELS).find((button) => PANELS[button] === panel));
}
