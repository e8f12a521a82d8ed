//! `map`: where the contents of a disk are stored.

use diskette::engine::status::{Chain, Status};
use diskette::wire::parse_size;
use diskette::{Node, Range, Want, block_on};

use crate::args::{MapArgs, Output};
use crate::open::{Wish, open};
use crate::{Failure, Outcome};

pub(crate) fn run(args: &MapArgs) -> Outcome {
    let opened = open(&args.file, &Wish::from(&args.image))?;
    let length = opened.image.info().length;
    let number = |text: &Option<String>, what: &str| {
        text.as_deref()
            .map(|text| parse_size(text).ok_or_else(|| Failure::new(format!("Invalid {what} specified"))))
            .transpose()
    };
    let start = number(&args.start_offset, "start offset")?.unwrap_or(0);
    let max = number(&args.max_length, "max length")?.unwrap_or(u64::MAX);
    let start = start.min(length);
    let range = Range::new(start, max.min(length - start));
    let mut printer = Printer { json: args.output == Output::Json, first: true, failure: None };
    printer.begin();
    let walked = block_on(Chain::of(opened.node()).walk(range, Want::Recorded, |status| printer.print(&status)));
    if let Some(failure) = printer.failure {
        return Err(failure);
    }
    walked?;
    printer.end();
    Ok(0)
}

struct Printer {
    json: bool,
    first: bool,
    failure: Option<Failure>,
}

impl Printer {
    fn begin(&self) {
        if self.json {
            print!("[");
        } else {
            println!("{:<16}{:<16}{:<16}File", "Offset", "Length", "Mapped to");
        }
    }

    fn print(&mut self, status: &Status) {
        if self.json {
            let separator = if self.first { "" } else { ",\n" };
            let offset = status.offset.map(|offset| format!(", \"offset\": {offset}")).unwrap_or_default();
            print!(
                "{separator}{{ \"start\": {}, \"length\": {}, \"depth\": {}, \"present\": {}, \"zero\": {}, \"data\": {}, \"compressed\": {}{offset}}}",
                status.start, status.len, status.depth, status.present, status.zero, status.data, status.compressed
            );
            self.first = false;
        } else if status.data && !status.zero {
            match (status.offset, &status.file) {
                (Some(offset), Some(file)) => {
                    println!("{:<16}{:<16}{:<16}{file}", hex(status.start), hex(status.len), hex(offset));
                }
                _ => {
                    self.failure.get_or_insert_with(|| {
                        Failure::new("File contains external, encrypted or compressed clusters.")
                    });
                }
            }
        }
    }

    fn end(&self) {
        if self.json {
            println!("]");
        }
    }
}

/// Hexadecimal with `0x`, except that zero is `0`.
fn hex(number: u64) -> String {
    if number == 0 { "0".to_string() } else { format!("{number:#x}") }
}
