//! A sequence of launches that is recorded once and replayed, where the device can.

use cubecl::client::Graph;
use cubecl::prelude::*;

/// What is known of the launches.
#[derive(Debug, Default)]
enum Phase {
    /// Never run: kernels may have to be compiled.
    #[default]
    Cold,
    /// Run once.
    Warm,
    /// Replayed from here on.
    Recorded(Graph),
    /// The device records nothing.
    Plain,
}

/// Runs the same launches over the same buffers again and again.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    phase: Phase,
}

impl Recorder {
    /// Whether the launches are replayed.
    pub fn is_recorded(&self) -> bool {
        matches!(self.phase, Phase::Recorded(_))
    }

    /// Runs `launches` once. They are recorded in the second run; `client` must be pinned to one stream, and
    /// the buffers that they use live as long as the recorder.
    pub fn run(&mut self, client: &Client, launches: impl Fn() + Send) {
        match &self.phase {
            Phase::Cold => {
                launches();
                self.phase = Phase::Warm;
            }
            Phase::Warm => {
                self.phase = match record(client, launches) {
                    Some(graph) => Phase::Recorded(graph),
                    None => Phase::Plain,
                }
            }
            // SAFETY: the owner of this recorder keeps the buffers, and touches them on this stream only.
            Phase::Recorded(graph) => match unsafe { graph.replay() } {
                Ok(()) => {}
                Err(error) => {
                    log::warn!("decoding: the recorded step is refused ({error}); launching it");
                    launches();
                    self.phase = Phase::Plain;
                }
            },
            Phase::Plain => launches(),
        }
    }
}

/// Runs `launches` and records them while they run a second time, which computes nothing.
fn record(client: &Client, launches: impl Fn() + Send) -> Option<Graph> {
    // What another thread does on the device would spoil the recording.
    let recorded = client.exclusive(move || {
        let prepared = client.graph_prepare();
        launches();
        if let Err(error) = prepared.and_then(|()| client.start_capture()) {
            // Ends what was prepared, and has nothing to return.
            let _ = client.stop_capture();
            return Err(error);
        }
        launches();
        client.stop_capture()
    });
    match recorded.and_then(|graph| graph) {
        Ok(graph) => Some(graph),
        Err(error) => {
            log::debug!("decoding: steps are launched one by one: {error}");
            None
        }
    }
}
