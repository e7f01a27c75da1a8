//! Turns of the event loop during a computation. A browser's worker is one thread: while it computes, it receives no messages.

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

    /// The longest time that messages wait: too short for a person to notice, and long compared with the cost of a turn.
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

        /// Lets waiting messages be received, if the last turn was some time ago.
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
