//! Changes that are under way, so that the program does not end in the midst of one without saying so.

use std::sync::Arc;

use tokio::sync::watch;

/// Counts the changes of each image: requests until they are done, and what a page has changed until it flushes that.
pub(super) struct Underway(watch::Sender<State>);

struct State {
    /// By the places of the images in the list.
    counts: Vec<usize>,
    /// What has begun goes on, and nothing else begins.
    is_ending: bool,
    /// No connection goes on beyond what it is just answering.
    is_closing: bool,
}

/// A change that is under way for as long as this exists.
pub(super) struct Begun {
    underway: Arc<Underway>,
    image: usize,
}

impl Underway {
    pub(super) fn new(images: usize) -> Arc<Self> {
        Arc::new(Underway(watch::Sender::new(State { counts: vec![0; images], is_ending: false, is_closing: false })))
    }

    /// Notes a change of an image. When the program is ending there is none but as a part of one that has begun.
    pub(super) fn begin(self: &Arc<Self>, image: usize) -> Option<Begun> {
        let has_begun = self.0.send_if_modified(|state| match state.counts.get_mut(image) {
            Some(count) if !state.is_ending || *count > 0 => {
                *count += 1;
                true
            }
            _ => false,
        });
        has_begun.then(|| Begun { underway: self.clone(), image })
    }

    /// From now on nothing new begins.
    pub(super) fn end(&self) {
        self.0.send_modify(|state| state.is_ending = true);
    }

    /// From now on connections end with what they are just answering.
    pub(super) fn close(&self) {
        self.0.send_modify(|state| state.is_closing = true);
    }

    /// Resolves when connections are to end.
    pub(super) async fn closing(&self) {
        // The sender is here, so that there is always an answer.
        let _ = self.0.subscribe().wait_for(|state| state.is_closing).await;
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
