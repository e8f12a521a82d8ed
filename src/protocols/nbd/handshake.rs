//! From a fresh connection to an export.

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use byteorder::{BigEndian, ByteOrder};

use super::wire::{
    ExportFlags, FIXED_NEWSTYLE, MAX_DATA_BYTES, MAX_MINIMUM_BLOCK_BYTES, MAX_TEXT_BYTES, NO_ZEROES, OLDSTYLE_MAGIC,
    OPTION_MAGIC, OPTION_REPLY_MAGIC, Opt, OptionReply, PADDING_BYTES, SERVER_MAGIC, encode_option, info, reply, shown,
};
use super::{Channel, violation};
use crate::error::{Error, ErrorKind, Result};

/// The context of block status that every server understands.
pub const BASE_ALLOCATION: &str = "base:allocation";

/// Longest reply to an option in bytes: a number and a text.
const MAX_REPLY_BYTES: u32 = 8 + MAX_TEXT_BYTES as u32;
/// Most replies to an option before it is done.
const MAX_REPLIES: usize = 256;

/// What a server says about an export, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Export {
    /// Size in bytes.
    pub length: u64,
    /// What it can do.
    pub flags: ExportFlags,
    /// Requests must be multiples of this power of two.
    pub minimum_block: u32,
    /// Most bytes of data of a request, a multiple of the minimum.
    pub maximum_block: u32,
    /// Whether replies come in chunks.
    pub structured: bool,
    /// Number of the context that block status is asked from.
    pub context: Option<u32>,
}

/// Finds the export of that name. Block status will be of `context`, without which there is no export if it was asked
/// for by name.
///
/// # Errors
/// The server has no such export, wants what is not supported, or does not speak the protocol.
pub fn negotiate(channel: &mut dyn Channel, export: &str, context: Option<&str>) -> Result<Export> {
    let magic = receive_u64(channel, "initial magic")?;
    if magic != SERVER_MAGIC {
        return Err(violation(format!("Bad initial magic received: 0x{magic:016x}")));
    }
    let magic = receive_u64(channel, "server magic")?;
    let found = match magic {
        OLDSTYLE_MAGIC => oldstyle(channel, export)?,
        OPTION_MAGIC => newstyle(channel, export, context.unwrap_or(BASE_ALLOCATION))?,
        _ => return Err(violation(format!("Bad server magic received: 0x{magic:016x}"))),
    };
    if let (Some(context), None) = (context, found.context) {
        let text = format!("the server has no metadata context '{context}'");
        return Err(Error::invalid(text).with_headline("Could not open image: Invalid argument"));
    }
    Ok(found)
}

fn oldstyle(channel: &mut dyn Channel, export: &str) -> Result<Export> {
    if !export.is_empty() {
        return Err(Error::invalid("Server does not support non-empty export names"));
    }
    let length = receive_u64(channel, "export length")?;
    // The upper half has no meaning.
    let flags = receive_u32(channel, "export flags")? & 0xffff;
    skip_padding(channel)?;
    checked(length, flags as u16, None)
}

fn newstyle(channel: &mut dyn Channel, export: &str, context: &str) -> Result<Export> {
    let server = receive_u16(channel, "server flags")?;
    let ours = server & (FIXED_NEWSTYLE | NO_ZEROES);
    send(channel, &u32::from(ours).to_be_bytes(), "clientflags field")?;
    let padded = ours & NO_ZEROES == 0;
    if ours & FIXED_NEWSTYLE == 0 {
        return by_name(channel, export, padded);
    }
    let structured = accepted(channel, Opt::StructuredReply, &[])?;
    let context = if structured { set_context(channel, export, context)? } else { None };
    let found = match go(channel, export)? {
        Some(found) => found,
        None => by_name(channel, export, padded)?,
    };
    Ok(Export { structured, context, ..found })
}

/// The way to ask for an export that every server knows. There is no answer if it has none of that name.
fn by_name(channel: &mut dyn Channel, export: &str, padded: bool) -> Result<Export> {
    send_option(channel, Opt::ExportName, export.as_bytes())?;
    let length = receive_u64(channel, "export length")?;
    let flags = receive_u16(channel, "export flags")?;
    if padded {
        skip_padding(channel)?;
    }
    checked(length, flags, None)
}

/// Asks for an export. `None` if the server does not know how to be asked like this.
fn go(channel: &mut dyn Channel, export: &str) -> Result<Option<Export>> {
    let mut data = counted(export.as_bytes());
    data.extend_from_slice(&1u16.to_be_bytes());
    data.extend_from_slice(&info::BLOCK_SIZE.to_be_bytes());
    send_option(channel, Opt::Go, &data)?;
    let mut found: Option<(u64, u16)> = None;
    let mut blocks: Option<[u32; 3]> = None;
    for _ in 0..MAX_REPLIES {
        let (kind, data) = receive_reply(channel, Opt::Go)?;
        match kind {
            reply::ACK => {
                expect_empty(Opt::Go, &data)?;
                let (length, flags) =
                    found.ok_or_else(|| violation("the server did not say how large the export is"))?;
                return checked(length, flags, blocks).map(Some);
            }
            reply::INFO => {
                let Some((about, rest)) = data.split_at_checked(2) else {
                    return Err(violation("Information of the server has no type"));
                };
                let wrong =
                    |name: &str| violation(format!("Information about {name} is {} bytes, which is wrong", data.len()));
                match (BigEndian::read_u16(about), rest.len()) {
                    (info::EXPORT, 10) => {
                        found = Some((BigEndian::read_u64(rest), BigEndian::read_u16(&rest[8..10])));
                    }
                    (info::EXPORT, _) => return Err(wrong("the export")),
                    (info::BLOCK_SIZE, 12) => {
                        let mut sizes = [0; 3];
                        BigEndian::read_u32_into(rest, &mut sizes);
                        blocks = Some(sizes);
                    }
                    (info::BLOCK_SIZE, _) => return Err(wrong("block sizes")),
                    // Names and descriptions.
                    _ => {}
                }
            }
            reply::UNSUPPORTED => return Ok(None),
            kind if kind & reply::ERROR != 0 => {
                // The reason matters more than whether the goodbye is heard.
                let _ = send_option(channel, Opt::Abort, &[]);
                return Err(refused(Opt::Go, kind, &data));
            }
            _ => return Err(unexpected(Opt::Go, kind)),
        }
    }
    Err(violation("the server says too much about the export"))
}

/// Asks for block status of one context, and gives the number of it.
fn set_context(channel: &mut dyn Channel, export: &str, context: &str) -> Result<Option<u32>> {
    let option = Opt::SetMetaContext;
    let mut data = counted(export.as_bytes());
    data.extend_from_slice(&1u32.to_be_bytes());
    data.extend_from_slice(&counted(context.as_bytes()));
    send_option(channel, option, &data)?;
    let mut found = None;
    loop {
        let (kind, data) = receive_reply(channel, option)?;
        match kind {
            reply::ACK => {
                expect_empty(option, &data)?;
                return Ok(found);
            }
            reply::META_CONTEXT => {
                let Some((number, name)) = data.split_at_checked(4) else {
                    return Err(violation("a metadata context of the server has no number"));
                };
                if name != context.as_bytes() {
                    let name = shown(name);
                    return Err(violation(format!("the server has context '{name}' where '{context}' was asked for")));
                }
                if found.replace(BigEndian::read_u32(number)).is_some() {
                    return Err(violation(format!("the server has context '{context}' twice")));
                }
            }
            // Whatever the reason, it works without.
            kind if kind & reply::ERROR != 0 => return Ok(None),
            _ => return Err(unexpected(option, kind)),
        }
    }
}

/// Whether the server agrees to an option that has no answer but yes and no.
fn accepted(channel: &mut dyn Channel, option: Opt, data: &[u8]) -> Result<bool> {
    send_option(channel, option, data)?;
    let (kind, data) = receive_reply(channel, option)?;
    match kind {
        reply::ACK => expect_empty(option, &data).map(|()| true),
        kind if kind & reply::ERROR != 0 => Ok(false),
        _ => Err(unexpected(option, kind)),
    }
}

/// Checks what a server says about an export.
fn checked(length: u64, flags: u16, blocks: Option<[u32; 3]>) -> Result<Export> {
    if i64::try_from(length).is_err() {
        return Err(violation(format!("the export is {length} bytes long, more than an offset can tell")));
    }
    // Without a word of the server, sectors are safe.
    let default_minimum = if length.is_multiple_of(512) { 512 } else { 1 };
    let [minimum_block, preferred, maximum] = blocks.unwrap_or([default_minimum, 4096, u32::MAX]);
    if !minimum_block.is_power_of_two() || minimum_block > MAX_MINIMUM_BLOCK_BYTES {
        return Err(violation(format!("server minimum block size {minimum_block} is not a power of two up to 65536")));
    }
    if !preferred.is_power_of_two() || preferred < minimum_block {
        return Err(violation(format!("server preferred block size {preferred} is not valid")));
    }
    if maximum < minimum_block || (maximum != u32::MAX && !maximum.is_multiple_of(minimum_block)) {
        return Err(violation(format!("server maximum block size {maximum} is not valid")));
    }
    if !length.is_multiple_of(minimum_block.into()) {
        return Err(violation(format!("export length {length} is not multiple of minimum block size {minimum_block}")));
    }
    Ok(Export {
        length,
        flags: ExportFlags::new(flags),
        minimum_block,
        // Of two powers of two, the larger one is a multiple of the other.
        maximum_block: if maximum < MAX_DATA_BYTES { maximum } else { MAX_DATA_BYTES },
        structured: false,
        context: None,
    })
}

/// What the server has against an option, in words.
fn refused(option: Opt, kind: u32, data: &[u8]) -> Error {
    let named = format!("option {} ({})", option as u32, option.name());
    let (error, text) = match kind {
        reply::UNSUPPORTED => (ErrorKind::Unsupported, format!("Unsupported {named}")),
        reply::POLICY => (ErrorKind::PermissionDenied, format!("Denied by server for {named}")),
        reply::INVALID => (ErrorKind::Invalid, format!("Invalid parameters for {named}")),
        reply::PLATFORM => (ErrorKind::Unsupported, format!("Server lacks support for {named}")),
        reply::TLS_REQUIRED => (
            ErrorKind::Unsupported,
            format!("TLS negotiation required before {named}\nDid you forget a valid tls-creds?"),
        ),
        reply::UNKNOWN => (ErrorKind::Invalid, String::from("Requested export not available")),
        reply::SHUTDOWN => (ErrorKind::Io, format!("Server shutting down before {named}")),
        reply::BLOCK_SIZE_REQUIRED => (ErrorKind::Invalid, format!("Server requires INFO_BLOCK_SIZE for {named}")),
        reply::TOO_BIG => (ErrorKind::Invalid, format!("Request too big for {named}")),
        _ => (ErrorKind::Io, format!("Unknown error code 0x{kind:x} when asking for {named}")),
    };
    let reported = if data.is_empty() { String::new() } else { format!("\nserver reported: {}", shown(data)) };
    Error::new(error, format!("{text}{reported}"))
}

fn unexpected(option: Opt, kind: u32) -> Error {
    violation(format!("Unexpected reply type 0x{kind:x} to option {} ({})", option as u32, option.name()))
}

fn expect_empty(option: Opt, data: &[u8]) -> Result<()> {
    if data.is_empty() {
        return Ok(());
    }
    Err(violation(format!("the server agrees to option {} ({}) at too great length", option as u32, option.name())))
}

/// A text after its length.
fn counted(text: &[u8]) -> Vec<u8> {
    // Names are limited where they come from.
    let mut bytes = u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes().to_vec();
    bytes.extend_from_slice(text);
    bytes
}

fn send_option(channel: &mut dyn Channel, option: Opt, data: &[u8]) -> Result<()> {
    let mut bytes = encode_option(option, u32::try_from(data.len()).unwrap_or(u32::MAX)).to_vec();
    bytes.extend_from_slice(data);
    send(channel, &bytes, "option request")
}

/// Type and data of the next reply to an option.
fn receive_reply(channel: &mut dyn Channel, option: Opt) -> Result<(u32, Vec<u8>)> {
    let mut bytes = [0; 20];
    receive(channel, &mut bytes, "option reply")?;
    let head = OptionReply::parse(&bytes);
    if head.magic != OPTION_REPLY_MAGIC {
        return Err(violation(format!("Unexpected option reply magic 0x{:016x}", head.magic)));
    }
    if head.option != option as u32 {
        return Err(violation(format!("Unexpected option type {} ({}) was asked for", head.option, option.name())));
    }
    if head.len > MAX_REPLY_BYTES {
        return Err(violation(format!(
            "option reply of {} bytes is too long, {MAX_REPLY_BYTES} are allowed",
            head.len
        )));
    }
    let mut data = vec![0; head.len as usize];
    receive(channel, &mut data, "option reply")?;
    Ok((head.kind, data))
}

fn skip_padding(channel: &mut dyn Channel) -> Result<()> {
    receive(channel, &mut [0; PADDING_BYTES], "reserved block")
}

fn receive_u64(channel: &mut dyn Channel, what: &str) -> Result<u64> {
    let mut bytes = [0; 8];
    receive(channel, &mut bytes, what).map(|()| u64::from_be_bytes(bytes))
}

fn receive_u32(channel: &mut dyn Channel, what: &str) -> Result<u32> {
    let mut bytes = [0; 4];
    receive(channel, &mut bytes, what).map(|()| u32::from_be_bytes(bytes))
}

fn receive_u16(channel: &mut dyn Channel, what: &str) -> Result<u16> {
    let mut bytes = [0; 2];
    receive(channel, &mut bytes, what).map(|()| u16::from_be_bytes(bytes))
}

fn receive(channel: &mut dyn Channel, into: &mut [u8], what: &str) -> Result<()> {
    channel.receive(into).map_err(|error| failed("read", what, &error))
}

fn send(channel: &mut dyn Channel, bytes: &[u8], what: &str) -> Result<()> {
    channel.send(bytes).map_err(|error| failed("send", what, &error))
}

fn failed(verb: &str, what: &str, error: &Error) -> Error {
    Error::new(error.kind(), format!("Failed to {verb} {what}: {}", error.problem()))
}
