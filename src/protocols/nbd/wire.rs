//! Numbers and structures of the protocol. All fields are big-endian.

use alloc::string::String;

use byteorder::{BigEndian, ByteOrder};

/// Begins every session: `NBDMAGIC`.
pub const SERVER_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// The oldstyle handshake follows.
pub const OLDSTYLE_MAGIC: u64 = 0x0000_4202_8186_1253;
/// The newstyle handshake follows; also begins an option: `IHAVEOPT`.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Begins the reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Begins a request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Begins a simple reply.
pub const SIMPLE_MAGIC: u32 = 0x6744_6698;
/// Begins a chunk of a structured reply.
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Handshake flag of either side: options can be refused without ending the session.
pub const FIXED_NEWSTYLE: u16 = 1;
/// Handshake flag of either side: no padding after the export.
pub const NO_ZEROES: u16 = 1 << 1;
/// Padding after the export where nobody agreed to leave it out, in bytes.
pub const PADDING_BYTES: usize = 124;

/// Longest text of the protocol in bytes: names of exports and contexts, messages.
pub const MAX_TEXT_BYTES: usize = 4096;
/// Most data of a request, unless the server says that it takes less.
pub const MAX_DATA_BYTES: u32 = 32 << 20;
/// Largest minimum block size.
pub const MAX_MINIMUM_BLOCK_BYTES: u32 = 64 << 10;

/// What a client asks for during the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Opt {
    /// This export, with no way to say no but to end the session.
    ExportName = 1,
    /// The end of the session.
    Abort = 2,
    /// This export.
    Go = 7,
    /// Structured replies.
    StructuredReply = 8,
    /// Contexts for block status.
    SetMetaContext = 10,
}

impl Opt {
    /// The protocol's name for it.
    pub const fn name(self) -> &'static str {
        match self {
            Opt::ExportName => "export name",
            Opt::Abort => "abort",
            Opt::Go => "go",
            Opt::StructuredReply => "structured reply",
            Opt::SetMetaContext => "set meta context",
        }
    }
}

/// Types of replies to options.
pub mod reply {
    /// Done.
    pub const ACK: u32 = 1;
    /// Something about the export.
    pub const INFO: u32 = 3;
    /// A context that was found.
    pub const META_CONTEXT: u32 = 4;
    /// Set in every error.
    pub const ERROR: u32 = 1 << 31;
    /// The server does not know the option.
    pub const UNSUPPORTED: u32 = ERROR | 1;
    /// It does not allow it.
    pub const POLICY: u32 = ERROR | 2;
    /// The option made no sense.
    pub const INVALID: u32 = ERROR | 3;
    /// Its platform has no such thing.
    pub const PLATFORM: u32 = ERROR | 4;
    /// Only with TLS.
    pub const TLS_REQUIRED: u32 = ERROR | 5;
    /// There is no such export.
    pub const UNKNOWN: u32 = ERROR | 6;
    /// The server is about to end.
    pub const SHUTDOWN: u32 = ERROR | 7;
    /// Only for clients that know about block sizes.
    pub const BLOCK_SIZE_REQUIRED: u32 = ERROR | 8;
    /// The option was too long.
    pub const TOO_BIG: u32 = ERROR | 9;
}

/// What an information reply is about.
pub mod info {
    /// Size and flags of the export.
    pub const EXPORT: u16 = 0;
    /// Block sizes.
    pub const BLOCK_SIZE: u16 = 3;
}

/// What an export can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExportFlags(u16);

impl ExportFlags {
    const HAS_FLAGS: u16 = 1;

    /// The flags a server sent. Without the one that says that there are flags, there are none.
    pub const fn new(raw: u16) -> Self {
        ExportFlags(if raw & Self::HAS_FLAGS == 0 { 0 } else { raw })
    }

    const fn has(self, bit: u16) -> bool {
        self.0 & (1 << bit) != 0
    }

    /// Writes are refused.
    pub const fn read_only(self) -> bool {
        self.has(1)
    }

    /// There is a flush.
    pub const fn flush(self) -> bool {
        self.has(2)
    }

    /// A write can ask to be on stable storage at once.
    pub const fn force_unit_access(self) -> bool {
        self.has(3)
    }

    /// There is a trim.
    pub const fn trim(self) -> bool {
        self.has(5)
    }

    /// There is a way to write zeroes.
    pub const fn write_zeroes(self) -> bool {
        self.has(6)
    }

    /// Several connections see the same disk, and a flush of one covers all.
    pub const fn multi_connection(self) -> bool {
        self.has(8)
    }

    /// Writing zeroes can be asked to fail where it would not be fast.
    pub const fn fast_zero(self) -> bool {
        self.has(11)
    }
}

/// What a client asks for once it has an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Command {
    /// Data.
    Read = 0,
    /// To store data.
    Write = 1,
    /// The end of the session.
    Disconnect = 2,
    /// Everything that was answered on stable storage.
    Flush = 3,
    /// To forget a range.
    Trim = 4,
    /// To store zeroes.
    WriteZeroes = 6,
    /// What a range holds.
    BlockStatus = 7,
}

/// Modifiers of requests.
pub mod flag {
    /// On stable storage when answered.
    pub const FORCE_UNIT_ACCESS: u16 = 1;
    /// The space is to be kept.
    pub const NO_HOLE: u16 = 1 << 1;
    /// One extent is enough.
    pub const REQUEST_ONE: u16 = 1 << 3;
    /// Fail unless it is faster than writing.
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What is asked for.
    pub command: Command,
    /// Modifiers, of [`flag`].
    pub flags: u16,
    /// Repeated in the answer.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub len: u32,
}

impl Request {
    /// The bytes of it.
    pub fn encode(&self) -> [u8; 28] {
        let mut bytes = [0; 28];
        BigEndian::write_u32(&mut bytes[0..4], REQUEST_MAGIC);
        BigEndian::write_u16(&mut bytes[4..6], self.flags);
        BigEndian::write_u16(&mut bytes[6..8], self.command as u16);
        BigEndian::write_u64(&mut bytes[8..16], self.cookie);
        BigEndian::write_u64(&mut bytes[16..24], self.offset);
        BigEndian::write_u32(&mut bytes[24..28], self.len);
        bytes
    }
}

/// An option before its data.
pub fn encode_option(option: Opt, len: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    BigEndian::write_u64(&mut bytes[0..8], OPTION_MAGIC);
    BigEndian::write_u32(&mut bytes[8..12], option as u32);
    BigEndian::write_u32(&mut bytes[12..16], len);
    bytes
}

/// The reply to an option before its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionReply {
    /// [`OPTION_REPLY_MAGIC`].
    pub magic: u64,
    /// The option that is answered.
    pub option: u32,
    /// One of [`reply`].
    pub kind: u32,
    /// Length of what follows in bytes.
    pub len: u32,
}

impl OptionReply {
    /// Reads the fields; none is checked.
    pub fn parse(bytes: &[u8; 20]) -> Self {
        OptionReply {
            magic: BigEndian::read_u64(&bytes[0..8]),
            option: BigEndian::read_u32(&bytes[8..12]),
            kind: BigEndian::read_u32(&bytes[12..16]),
            len: BigEndian::read_u32(&bytes[16..20]),
        }
    }
}

/// What follows [`SIMPLE_MAGIC`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimpleReply {
    /// 0 or an errno value.
    pub error: u32,
    /// That of the request.
    pub cookie: u64,
}

impl SimpleReply {
    /// Reads the fields; none is checked.
    pub fn parse(bytes: &[u8; 12]) -> Self {
        SimpleReply { error: BigEndian::read_u32(&bytes[0..4]), cookie: BigEndian::read_u64(&bytes[4..12]) }
    }
}

/// What follows [`CHUNK_MAGIC`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Only [`Chunk::DONE`] is known.
    pub flags: u16,
    /// What it holds: `Chunk::NONE` and so on.
    pub kind: u16,
    /// That of the request.
    pub cookie: u64,
    /// Length of what follows in bytes.
    pub len: u32,
}

impl Chunk {
    /// No more chunks follow.
    pub const DONE: u16 = 1;
    /// Holds nothing.
    pub const NONE: u16 = 0;
    /// Offset and data.
    pub const DATA: u16 = 1;
    /// Offset and length of zeroes.
    pub const HOLE: u16 = 2;
    /// A context and extents.
    pub const BLOCK_STATUS: u16 = 5;
    /// Set in every error.
    pub const ERROR: u16 = 1 << 15;
    /// An error that has an offset.
    pub const ERROR_OFFSET: u16 = Chunk::ERROR | 2;

    /// Reads the fields; none is checked.
    pub fn parse(bytes: &[u8; 16]) -> Self {
        Chunk {
            flags: BigEndian::read_u16(&bytes[0..2]),
            kind: BigEndian::read_u16(&bytes[2..4]),
            cookie: BigEndian::read_u64(&bytes[4..12]),
            len: BigEndian::read_u32(&bytes[12..16]),
        }
    }
}

/// A text of the server as it may be shown on a terminal.
pub fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes.get(..MAX_TEXT_BYTES).unwrap_or(bytes));
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_its_fields_where_the_protocol_says() {
        let request = Request { command: Command::Trim, flags: 1, cookie: 2, offset: 3, len: 4 };
        let bytes = request.encode();
        assert_eq!(bytes[..8], [0x25, 0x60, 0x95, 0x13, 0, 1, 0, 4]);
        assert_eq!((bytes[15], bytes[23], bytes[27]), (2, 3, 4));
    }

    #[test]
    fn flags_count_only_if_there_are_any() {
        assert!(!ExportFlags::new(2).read_only());
        assert!(ExportFlags::new(3).read_only());
    }

    #[test]
    fn texts_of_a_server_do_not_steer_the_terminal() {
        assert_eq!(shown(b"a\x1b[2J\nb"), "a\u{fffd}[2J\u{fffd}b");
        assert_eq!(shown(&[b'x'; 10_000]).len(), MAX_TEXT_BYTES);
    }
}
