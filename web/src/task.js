// A turn of the event loop, at once: browsers hold timers of pages in the background back for a second.

/** Runs `work` as a task of its own, behind all that waits already. */
export function inTask(work) {
  const { port1, port2 } = new MessageChannel();
  port1.onmessage = () => {
    port1.close();
    work();
  };
  port2.postMessage(null);
}
