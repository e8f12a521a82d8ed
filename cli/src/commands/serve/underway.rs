//! Changes that are under way, so that the program does not end in the midst of one without saying so.

use std::sync::Arc;

use tokio::sync::watch;

/// Counts the changes of each image, from the request to the answer.
pub(super) struct Underway(watch::Sender<State>);

struct State {
    /// By the places of the images in the list.
    counts: Vec<usize>,
    is_ending: bool,
}

/// A change that is under way for as long as this exists.
pub(super) struct Begun {
    underway: Arc<Underway>,
    image: usize,
}

impl Underway {
    pub(super) fn new(images: usize) -> Arc<Self> {
        Arc::new(Underway(watch::Sender::new(State { counts: vec![0; images], is_ending: false })))
    }

    /// Notes a change of an image; none begins when the program is ending.
    pub(super) fn begin(self: &Arc<Self>, image: usize) -> Option<Begun> {
        let has_begun = self.0.send_if_modified(|state| match state.counts.get_mut(image) {
            Some(count) if !state.is_ending => {
                *count += 1;
                true
            }
            _ => false,
        });
        has_begun.then(|| Begun { underway: self.clone(), image })
    }

    /// From now on no change begins.
    pub(super) fn end(&self) {
        self.0.send_modify(|state| state.is_ending = true);
    }

    /// Resolves when the program is ending.
    pub(super) async fn ending(&self) {
        // The sender is here, so that there is always an answer.
        let _ = self.0.subscribe().wait_for(|state| state.is_ending).await;
    }

    /// Resolves when no change is under way.
    pub(super) async fn idle(&self) {
        let _ = self.0.subscribe().wait_for(|state| state.counts.iter().all(|count| *count == 0)).await;
    }

    /// The places of the images that are being changed.
    pub(super) fn images(&self) -> Vec<usize> {
        let state = self.0.borrow();
        state.counts.iter().enumerate().filter(|(_, count)| **count > 0).map(|(image, _)| image).collect()
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.underway.0.send_modify(|state| {
            if let Some(count) = state.counts.get_mut(self.image) {
                *count = count.saturating_sub(1);
            }
        });
    }
}
