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
    pub fn run<E: Send + 'static>(
        &mut self,
        client: &Client,
        launches: impl Fn() -> Result<(), E> + Sync,
    ) -> Result<(), E> {
        match &self.phase {
            Phase::Cold => {
                launches()?;
                self.phase = Phase::Warm;
            }
            Phase::Warm => {
                self.phase = match record(client, launches)? {
                    Some(graph) => Phase::Recorded(graph),
                    None => Phase::Plain,
                }
            }
            // SAFETY: the owner of this recorder keeps the buffers, and touches them on this stream only.
            Phase::Recorded(graph) => match unsafe { graph.replay() } {
                Ok(()) => {}
                Err(error) => {
                    log::warn!("decoding: the recorded step is refused ({error}); launching it");
                    self.phase = Phase::Plain;
                    launches()?;
                }
            },
            Phase::Plain => launches()?,
        }
        Ok(())
    }
}

/// Runs `launches` and records them while they run a second time, which computes nothing. There may be no
/// recording; the error is that of the launches.
fn record<E: Send + 'static>(
    client: &Client,
    launches: impl Fn() -> Result<(), E> + Sync,
) -> Result<Option<Graph>, E> {
    // What another thread does on the device would spoil the recording.
    let recorded = client.exclusive(|| {
        let prepared = client.graph_prepare();
        if let Err(error) = launches() {
            let _ = client.stop_capture();
            return Err(error);
        }
        if let Err(error) = prepared.and_then(|()| client.start_capture()) {
            // Ends what was prepared, and has nothing to return.
            let _ = client.stop_capture();
            return Ok(Err(error));
        }
        let again = launches();
        let graph = client.stop_capture();
        again.map(|()| graph)
    });
    let graph = match recorded {
        Ok(graph) => graph?,
        // The device was not to be had alone, and nothing has run.
        Err(error) => {
            launches()?;
            Err(error)
        }
    };
    match graph {
        Ok(graph) => Ok(Some(graph)),
        Err(error) => {
            log::debug!("decoding: steps are launched one by one: {error}");
            Ok(None)
        }
    }
}
