//! `map`: where the contents of a disk are stored.

use diskette::engine::status::{Chain, Status};
use diskette::{Node, Range, Want, block_on};

use crate::args::{MapArgs, Output};
use crate::number::{self, MAX_OFFSET};
use crate::open::{Wish, open};
use crate::output::print;
use crate::{Failure, Outcome};

/// Output is printed in pieces of about this many bytes.
const PIECE_BYTES: usize = 1 << 16;

pub(crate) fn run(args: &MapArgs) -> Outcome {
    let offset = |text: &Option<String>, what: &str| {
        text.as_deref().map(|text| number::parse(text, what, 0..=MAX_OFFSET)).transpose()
    };
    let start = offset(&args.start_offset, "start offset")?.unwrap_or(0);
    let max = offset(&args.max_length, "max length")?.unwrap_or(u64::MAX);
    let opened = open(&args.file, &Wish { locked: true, ..Wish::try_from(&args.image)? })?;
    let length = opened.image.info().length.saturating_sub(start).min(max);
    let mut printer = Printer { json: args.output == Output::Json, first: true, text: String::new(), failure: None };
    printer.begin();
    if length == 0 {
        printer.print(&Status {
            start,
            len: 0,
            depth: 0,
            present: false,
            zero: false,
            data: false,
            compressed: false,
            offset: None,
            file: None,
        });
    }
    let range = Range::new(start, length);
    block_on(Chain::of(opened.node()).walk(range, Want::Recorded, |status| printer.print(&status)))?;
    if printer.json {
        printer.text.push_str("]\n");
    }
    print(&printer.text);
    printer.failure.map_or(Ok(0), Err)
}

struct Printer {
    json: bool,
    first: bool,
    text: String,
    failure: Option<Failure>,
}

impl Printer {
    fn begin(&mut self) {
        if self.json {
            self.text.push('[');
        } else {
            self.text = format!("{:<16}{:<16}{:<16}File\n", "Offset", "Length", "Mapped to");
        }
    }

    fn print(&mut self, status: &Status) {
        if self.failure.is_some() {
            return;
        }
        if self.json {
            let separator = if self.first { "" } else { ",\n" };
            let offset = status.offset.map(|offset| format!(", \"offset\": {offset}")).unwrap_or_default();
            self.text.push_str(&format!(
                "{separator}{{ \"start\": {}, \"length\": {}, \"depth\": {}, \"present\": {}, \"zero\": {}, \"data\": {}, \"compressed\": {}{offset}}}",
                status.start, status.len, status.depth, status.present, status.zero, status.data, status.compressed
            ));
            self.first = false;
        } else if status.data && !status.zero {
            match (status.offset, &status.file) {
                (Some(offset), Some(file)) => self.text.push_str(&format!(
                    "{:<16}{:<16}{:<16}{file}\n",
                    hex(status.start),
                    hex(status.len),
                    hex(offset)
                )),
                _ => {
                    self.failure = Some(Failure::new("File contains external, encrypted or compressed clusters."));
                }
            }
        }
        if self.text.len() >= PIECE_BYTES {
            print(&self.text);
            self.text.clear();
        }
    }
}

/// Hexadecimal with `0x`, except that zero is `0`.
fn hex(number: u64) -> String {
    if number == 0 { "0".to_string() } else { format!("{number:#x}") }
}
