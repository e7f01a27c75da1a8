//! Turns for what else waits on a thread. A browser's worker is one thread: while it computes, it hears nothing.

#[cfg(not(target_arch = "wasm32"))]
mod system {
    /// Others have threads of their own.
    #[derive(Debug, Default)]
    pub struct Turns;

    impl Turns {
        /// Nothing to keep.
        pub fn new() -> Turns {
            Turns
        }

        /// Goes on at once.
        pub async fn give(&mut self) {}
    }
}

#[cfg(target_arch = "wasm32")]
mod system {
    use std::time::Duration;

    use futures_channel::oneshot;
    use wasm_bindgen::closure::Closure;
    use wasm_bindgen::{JsCast, JsValue};
    use web_sys::MessageChannel;

    use super::super::clock::Instant;

    /// Messages wait so long for an answer, at most: too short for a person to notice, long beside what a turn costs.
    const INTERVAL: Duration = Duration::from_millis(25);

    /// Gives the worker's event loop its turns while an answer is computed.
    #[derive(Debug)]
    pub struct Turns {
        last: Instant,
    }

    impl Default for Turns {
        fn default() -> Turns {
            Turns::new()
        }
    }

    impl Turns {
        /// The last turn was now.
        pub fn new() -> Turns {
            Turns { last: Instant::now() }
        }

        /// Lets messages that wait be heard, if the last turn was some time ago.
        pub async fn give(&mut self) {
            if self.last.elapsed() >= INTERVAL {
                turn().await;
                self.last = Instant::now();
            }
        }
    }

    /// One turn of the event loop. A message to oneself comes behind those that wait, and at once: browsers hold timers back.
    async fn turn() {
        let Ok(channel) = MessageChannel::new() else { return };
        let (sender, receiver) = oneshot::channel();
        let wake = Closure::once_into_js(move || {
            // Nobody listens any more where the caller was dropped.
            let _ = sender.send(());
        });
        let own = channel.port1();
        own.set_onmessage(Some(wake.unchecked_ref()));
        if channel.port2().post_message(&JsValue::NULL).is_ok() {
            let _ = receiver.await;
        }
        own.close();
    }
}

pub use system::Turns;
