//! Progress: a bar on a terminal, QEMU's form elsewhere, a line when SIGUSR1 asks for one.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output::{flush, line, print};

/// Shows how much of `total` is done.
pub(crate) struct Progress {
    total: u64,
    shown: Shown,
    /// Whether SIGUSR1 came.
    asked: Arc<AtomicBool>,
}

enum Shown {
    Nothing,
    Bar(ProgressBar),
    /// The last hundredth of a percent that was printed.
    Plain(Mutex<u64>),
}

impl Progress {
    pub(crate) fn new(enabled: bool, total: u64) -> Self {
        let shown = match (enabled, std::io::stdout().is_terminal()) {
            (false, _) => Shown::Nothing,
            (true, true) => {
                let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stdout());
                let style = ProgressStyle::with_template(
                    "{bar:40} {percent:>3}%  {bytes}/{total_bytes}  {bytes_per_sec}  eta {eta}",
                );
                bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
                Shown::Bar(bar)
            }
            (true, false) => {
                print("    (0.00/100%)\r");
                Shown::Plain(Mutex::new(0))
            }
        };
        let asked = Arc::new(AtomicBool::new(false));
        // Where the signal cannot be caught nobody is answered.
        let _ = signal_hook::flag::register(signal_hook::consts::SIGUSR1, asked.clone());
        Progress { total, shown, asked }
    }

    pub(crate) fn update(&self, done: u64) {
        match &self.shown {
            Shown::Nothing => {
                if self.asked.swap(false, Ordering::Relaxed) {
                    let part = self.part(done);
                    eprintln!("    ({}.{:02}/100%)", part / 100, part % 100);
                }
            }
            Shown::Bar(bar) => bar.set_position(done),
            Shown::Plain(last) => {
                let part = self.part(done);
                let mut last = last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                // What was done may turn out to be less of a whole that is larger.
                if part >= *last + 100 || part < *last {
                    *last = part;
                    print(&format!("    ({}.{:02}/100%)\r", part / 100, part % 100));
                    flush();
                }
            }
        }
    }

    /// Hundredths of a percent.
    fn part(&self, done: u64) -> u64 {
        if self.total == 0 { 10_000 } else { (u128::from(done) * 10_000 / u128::from(self.total)) as u64 }
    }

    /// Prints a line meanwhile.
    pub(crate) fn line(&self, text: &str) {
        match &self.shown {
            Shown::Bar(bar) => bar.suspend(|| line(text)),
            _ => line(text),
        }
    }

    /// Everything is done.
    pub(crate) fn complete(&self) {
        match &self.shown {
            Shown::Nothing => {}
            Shown::Bar(bar) => bar.set_position(self.total),
            Shown::Plain(_) => print("    (100.00/100%)\r"),
        }
    }
}

impl Drop for Progress {
    /// Leaves the line, after whatever else was said on it.
    fn drop(&mut self) {
        match &self.shown {
            Shown::Nothing => {}
            Shown::Bar(bar) => bar.finish_and_clear(),
            Shown::Plain(_) => print("\n"),
        }
    }
}
