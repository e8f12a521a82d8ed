//! The command line.

use clap::{Arg, ArgAction, ArgMatches, Args, FromArgMatches, Parser, Subcommand, ValueEnum};

/// Disk images opened, inspected, changed and converted.
#[derive(Debug, Parser)]
#[command(name = "diskette", version, about, infer_long_args = true, args_override_self = true)]
pub(crate) struct Cli {
    /// What options name: secret,id=ID with data=TEXT or file=NAME and format=base64 if it is in that; or
    /// throttle-group,id=ID with x-bps-total=BYTES, x-iops-total=REQUESTS and the like
    #[arg(long = "object", value_name = "OBJDEF", global = true)]
    pub(crate) objects: Vec<String>,
    /// Open nothing that an image names, and let no image cost more than `inspect` allows
    #[arg(long, global = true)]
    pub(crate) untrusted: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show format, sizes and properties of an image
    Info(InfoArgs),
    /// Change properties of an image, such as the keys of an encrypted one
    Amend(AmendArgs),
    /// Show where the contents of an image are stored
    Map(MapArgs),
    /// Check the metadata of an image for errors
    Check(CheckArgs),
    /// Make a new image
    Create(CreateArgs),
    /// Convert an image to another format
    Convert(ConvertArgs),
    /// Compare the contents of two images
    Compare(CompareArgs),
    /// Look at an image that nobody trusts: nothing it names is opened
    Inspect(InspectArgs),
    /// Write what an image stores into one that it is backed by
    Commit(CommitArgs),
    /// Move an image to another backing file
    Rebase(RebaseArgs),
    /// List, make, apply and delete the internal snapshots of an image
    Snapshot(SnapshotArgs),
    /// Change the size of a disk
    Resize(ResizeArgs),
    /// Tell how large a new image will be
    Measure(MeasureArgs),
    /// Copy an image, or a part of it, in blocks
    Dd(DdArgs),
    /// Time requests to an image
    Bench(BenchArgs),
    /// Add, remove and change the bitmaps that an image stores
    Bitmap(BitmapArgs),
    /// Exercise an image: reads, writes and more, one command at a time
    Io(IoArgs),
    /// Look at images in a browser on this machine
    #[cfg(feature = "serve")]
    Serve(ServeArgs),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page of the program or of one of its commands
    Man {
        /// The command
        command: Option<String>,
    },
}

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For a person
    #[default]
    Human,
    /// For a program
    Json,
}

/// The image to work on.
#[derive(Debug, Args)]
pub(crate) struct ImageArgs {
    /// Format of the image; guessed from its contents without
    #[arg(short = 'f', long = "format", value_name = "FMT")]
    pub(crate) format: Option<String>,
    /// FILENAME is a list of options such as driver=qcow2,file.filename=disk.img
    #[arg(long)]
    pub(crate) image_opts: bool,
    /// Open even if another process has the image open for writing
    #[arg(short = 'U', long)]
    pub(crate) force_share: bool,
}

#[derive(Debug, Args)]
pub(crate) struct InfoArgs {
    #[command(flatten)]
    pub(crate) image: ImageArgs,
    /// How to print the result
    #[arg(long, value_enum, default_value_t)]
    pub(crate) output: Output,
    /// Show every image of the backing chain
    #[arg(short = 'b', long)]
    pub(crate) backing_chain: bool,
    /// The image
    #[arg(value_name = "FILENAME")]
    pub(crate) file: String,
}

#[derive(Debug, Args)]
pub(crate) struct AmendArgs {
    #[command(flatten)]
    pub(crate) image: ImageArgs,
    /// Properties to change, name=value with commas between; help lists them
    #[arg(short = 'o', long = "options", value_name = "OPTIONS")]
    pub(crate) options: Vec<String>,
    /// Cache mode of the image
    #[arg(short = 't', long, value_name = "CACHE")]
    pub(crate) cache: Option<String>,
    /// Do what may lose the last key of an encrypted image, too
    #[arg(long)]
    pub(crate) force: bool,
    /// Show progress
    #[arg(short = 'p', long)]
    pub(crate) progress: bool,
    /// Print nothing
    #[arg(short = 'q', long)]
    pub(crate) quiet: bool,
    /// The image
    #[arg(value_name = "FILENAME")]
    pub(crate) file: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ResizeArgs {
    #[command(flatten)]
    pub(crate) image: ImageArgs,
    /// How space that is added is set aside: off, metadata, falloc or full
    #[arg(long, value_name = "PREALLOC")]
    pub(crate) preallocation: Option<String>,
    /// Allow the disk to become smaller: what is behind the new end is lost
    #[arg(long)]
    pub(crate) shrink: bool,
    /// Print nothing
    #[arg(short = 'q', long)]
    pub(crate) quiet: bool,
    /// The image, and the new size: with + or - before it, what to add or to take away
    #[arg(value_names = ["FILENAME", "SIZE"], num_args = 0.., allow_hyphen_values = false)]
    pub(crate) words: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct MapArgs {
    #[command(flatten)]
    pub(crate) image: ImageArgs,
    /// How to print the result
    #[arg(long, value_enum, default_value_t)]
    pub(crate) output: Output,
    /// First byte of the disk to show
    #[arg(short = 's', long, value_name = "OFFSET", allow_hyphen_values = true)]
    pub(crate) start_offset: Option<String>,
    /// Number of bytes to show
    #[arg(short = 'l', long, value_name = "LEN", allow_hyphen_values = true)]
    pub(crate) max_length: Option<String>,
    /// The image
    #[arg(value_name = "FILENAME")]
    pub(crate) file: String,
}

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    pub(crate) image: ImageArgs,
    /// How to print the result
    #[arg(long, value_enum, default_value_t)]
    pub(crate) output: Output,
    /// Print no report, only set the exit code
    #[arg(short = 'q', long)]
    pub(crate) quiet: bool,
    /// Repair: give lost space back, or put everything right that can be
    #[arg(short = 'r', long, value_name = "leaks|all")]
    pub(crate) repair: Option<String>,
    /// Cache mode of the image
    #[arg(short = 'T', long, value_name = "CACHE")]
    pub(crate) cache: Option<String>,
    /// The image
    #[arg(value_name = "FILENAME")]
    pub(crate) file: String,
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Format of the new image
    #[arg(short = 'f', long = "format", value_name = "FMT", default_value = "raw")]
    pub(crate) format: String,
    /// Options of the format, name=value with commas between; help lists them
    #[arg(short = 'o', long = "options", value_name = "OPTIONS")]
    pub(crate) options: Vec<String>,
    /// Backing image
    #[arg(short = 'b', long = "backing", value_name = "BACKING_FILENAME")]
    pub(crate) backing: Option<String>,
    /// Format of the backing image
    #[arg(short = 'F', long = "backing-format", value_name = "BACKING_FMT")]
    pub(crate) backing_format: Option<String>,
    /// Do not open the backing image
    #[arg(short = 'u', long = "backing-unsafe")]
    pub(crate) backing_unsafe: bool,
    /// Print nothing
    #[arg(short = 'q', long)]
    pub(crate) quiet: bool,
    /// The new image
    #[arg(value_name = "FILENAME")]
    pub(crate) file: Option<String>,
    /// Size of the disk, with an optional suffix k, M, G, T, P or E
    #[arg(value_name = "SIZE")]
    pub(crate) size: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ConvertArgs {
    /// Format of the source; guessed from its contents without
    #[arg(short = 'f', long = "source-format", value_name = "SRC_FMT")]
    pub(crate) format: Option<String>,
    /// Each source is a list of options such as driver=qcow2,file.filename=disk.img
    #[arg(long = "source-image-opts", alias = "image-opts")]
    pub(crate) image_opts: bool,
    /// Open the source even if another process has it open for writing
    #[arg(short = 'U', long)]
    pub(crate) force_share: bool,
    /// Copy an internal snapshot: snapshot.id=ID,snapshot.name=NAME or just one of the two
    #[arg(
        short = 'l',
        long = "source-snapshot",
        alias = "snapshot",
        value_name = "SNAPSHOT_PARAM",
        allow_hyphen_values = true
    )]
    pub(crate) snapshot: Option<String>,
    /// Format of the target; raw without
    #[arg(short = 'O', long = "target-format", alias = "output-format", value_name = "OUTPUT_FMT")]
    pub(crate) target_format: Option<String>,
    /// The target, which exists already, is a list of options such as driver=qcow2,file.filename=disk.img
    #[arg(long)]
    pub(crate) target_image_opts: bool,
    /// Options of the target's format
    #[arg(short = 'o', long = "target-options", alias = "options", value_name = "OPTIONS")]
    pub(crate) options: Vec<String>,
    /// Backing image of the target
    #[arg(short = 'B', long = "backing", value_name = "BACKING_FILENAME")]
    pub(crate) backing: Option<String>,
    /// Format of the target's backing image
    #[arg(short = 'F', long = "backing-format", value_name = "BACKING_FMT")]
    pub(crate) backing_format: Option<String>,
    /// Compress the target
    #[arg(short = 'c', long)]
    pub(crate) compress: bool,
    /// Runs of zeroes at least this long are not stored; 0 stores everything
    #[arg(short = 'S', long = "sparse-size", value_name = "SIZE", allow_hyphen_values = true)]
    pub(crate) sparse_size: Option<String>,
    /// The target exists already
    #[arg(short = 'n', long = "no-create")]
    pub(crate) no_create: bool,
    /// The existing target reads as zeroes
    #[arg(long)]
    pub(crate) target_is_zero: bool,
    /// Copy the bitmaps, too
    #[arg(long)]
    pub(crate) bitmaps: bool,
    /// Leave out bitmaps that are broken
    #[arg(long)]
    pub(crate) skip_broken_bitmaps: bool,
    /// Number of parallel workers
    #[arg(short = 'm', long = "parallel", value_name = "NUMBER", allow_hyphen_values = true)]
    pub(crate) workers: Option<String>,
    /// Most bytes that are written in a second, with an optional suffix
    #[arg(short = 'r', long = "rate", value_name = "RATE", allow_hyphen_values = true)]
    pub(crate) rate: Option<String>,
    /// Take what cannot be read for zeroes and go on
    #[arg(long)]
    pub(crate) salvage: bool,
    /// Let workers write as soon as they can, rather than in the order of the disk
    #[arg(short = 'W', long = "oob-writes")]
    pub(crate) out_of_order: bool,
    /// Cache mode of the target
    #[arg(short = 't', long = "target-cache", value_name = "CACHE", default_value = "unsafe")]
    pub(crate) target_cache: String,
    /// Cache mode of the source
    #[arg(short = 'T', long = "source-cache", value_name = "CACHE", default_value = "writeback")]
    pub(crate) source_cache: String,
    /// Let the file system copy where it can, rather than look for zeroes
    #[arg(short = 'C', long)]
    pub(crate) copy_range_offloading: bool,
    /// Show progress
    #[arg(short = 'p', long)]
    pub(crate) progress: bool,
    /// Print nothing
    #[arg(short = 'q', long)]
    pub(crate) quiet: bool,
    /// The source or sources, which are joined, and last the target
    #[arg(value_name = "FILENAME")]
    pub(crate) files: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    /// Format of the first image
    #[arg(short = 'f', long = "a-format", value_name = "FMT")]
    pub(crate) first_format: Option<String>,
    /// Format of the second image
    #[arg(short = 'F', long = "b-format", value_name = "FMT")]
    pub(crate) second_format: Option<String>,
    /// FILENAME is a list of options
    #[arg(long)]
    pub(crate) image_opts: bool,
    /// Open even if another process has the images open for writing
    #[arg(short = 'U', long)]
    pub(crate) force_share: bool,
    /// Differences in size or allocation count, too
    #[arg(short = 's', long)]
    pub(crate) strict: bool,
    /// Cache mode of the images
    #[arg(short = 'T', long = "cache", value_name = "CACHE")]
    pub(crate) cache: Option<String>,
    /// Show progress
    #[arg(short = 'p', long)]
    pub(crate) progress: bool,
    /// Print nothing but errors
    #[arg(short = 'q', long)]
    pub(crate) quiet: bool,
    /// The first image
    #[arg(value_name = "FILENAME1")]
    pub(crate) first: String,
    /// The second image
    #[arg(value_name = "FILENAME2")]
    pub(crate) second: String,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// How to print the result
    #[arg(long, value_enum, default_value_t)]
    pub(crate) output: Output,
    /// Also check the metadata for errors
    #[arg(long)]
    pub(crate) check: bool,
    /// The image
    #[arg(value_name = "FILENAME")]
    pub(crate) file: String,
}

#[cfg(feature = "serve")]
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// Format of the images; guessed from their contents without
    #[arg(short = 'f', long = "format", value_name = "FMT")]
    pub(crate) format: Option<String>,
    /// Serve an image even if another process has it open for writing
    #[arg(short = 'U', long, conflicts_with = "writable")]
    pub(crate) force_share: bool,
    /// Let the page change the images, which no other process can use meanwhile
    #[arg(long)]
    pub(crate) writable: bool,
    /// Serve the files that the images name, too, to be read: backing files and data files
    #[arg(long)]
    pub(crate) follow: bool,
    /// Port of 127.0.0.1; any that is free without
    #[arg(long, value_name = "PORT")]
    pub(crate) port: Option<u16>,
    /// Folder of the page, instead of the page in this program
    #[arg(long, value_name = "FOLDER")]
    pub(crate) page: Option<std::path::PathBuf>,
    /// Seconds after which a connection is closed on which nothing moves
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) timeout: u64,
    /// The images
    #[arg(value_name = "IMAGE", required = true)]
    pub(crate) files: Vec<String>,
}

#[derive(Debug, Args)]
#[command(disable_version_flag = true)]
pub(crate) struct IoArgs {
    /// The image is a list of options such as driver=qcow2,file.filename=disk.img
    #[arg(long)]
    pub(crate) image_opts: bool,
    /// Run a command; may be given several times. Without, commands are read from standard input
    #[arg(short = 'c', long = "cmd", value_name = "STRING")]
    pub(crate) commands: Vec<String>,
    /// Format of the image; guessed from its contents without
    #[arg(short = 'f', long, value_name = "FMT")]
    pub(crate) format: Option<String>,
    /// Open the image read-only
    #[arg(short = 'r', long)]
    pub(crate) read_only: bool,
    /// Write to a temporary image instead
    #[arg(short = 's', long)]
    pub(crate) snapshot: bool,
    /// Cache mode none
    #[arg(short = 'n', long)]
    pub(crate) nocache: bool,
    /// Store what is read from the backing image
    #[arg(short = 'C', long)]
    pub(crate) copy_on_read: bool,
    /// Accepted; buffers are always aligned as the file needs it
    #[arg(short = 'm', long)]
    pub(crate) misalign: bool,
    /// Accepted; has no effect
    #[arg(short = 'k', long)]
    pub(crate) native_aio: bool,
    /// Accepted; has no effect
    #[arg(short = 'i', long, value_name = "MODE")]
    pub(crate) aio: Option<String>,
    /// Cache mode
    #[arg(short = 't', long, value_name = "MODE")]
    pub(crate) cache: Option<String>,
    /// Whether discards reach the image: unmap or ignore
    #[arg(short = 'd', long, value_name = "MODE")]
    pub(crate) discard: Option<String>,
    /// Accepted; has no effect
    #[arg(short = 'T', long, value_name = "EVENTS")]
    pub(crate) trace: Option<String>,
    /// Open the image even if another process has it open for writing
    #[arg(short = 'U', long)]
    pub(crate) force_share: bool,
    /// The image
    #[arg(value_name = "FILENAME")]
    pub(crate) file: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct SnapshotArgs {
    #[command(flatten)]
    pub(crate) image: ImageArgs,
    /// List the snapshots; so without any of these
    #[arg(short = 'l', long)]
    pub(crate) list: bool,
    /// Make a snapshot of the disk as it is
    #[arg(short = 'c', long, value_name = "SNAPSHOT")]
    pub(crate) create: Option<String>,
    /// Make the disk what it was, by the snapshot's identifier or name
    #[arg(short = 'a', long, value_name = "SNAPSHOT")]
    pub(crate) apply: Option<String>,
    /// Delete a snapshot by its name
    #[arg(short = 'd', long, value_name = "SNAPSHOT")]
    pub(crate) delete: Option<String>,
    /// Print nothing
    #[arg(short = 'q', long)]
    pub(crate) quiet: bool,
    /// The image
    #[arg(value_name = "FILENAME")]
    pub(crate) file: String,
}

#[derive(Debug, Args)]
pub(crate) struct MeasureArgs {
    /// Format of the new image
    #[arg(short = 'O', long, value_name = "FMT", default_value = "raw")]
    pub(crate) target_format: String,
    /// Options of the new image
    #[arg(short = 'o', long = "options", value_name = "OPTIONS")]
    pub(crate) options: Vec<String>,
    /// Size of the disk, instead of an image to copy
    #[arg(short = 's', long, value_name = "SIZE", allow_hyphen_values = true)]
    pub(crate) size: Option<String>,
    /// Take an internal snapshot of the image
    #[arg(short = 'l', long, value_name = "SNAPSHOT_PARAM")]
    pub(crate) snapshot: Option<String>,
    /// Format of the image; guessed from its contents without
    #[arg(short = 'f', long, value_name = "FMT")]
    pub(crate) format: Option<String>,
    /// FILENAME is a list of options
    #[arg(long)]
    pub(crate) image_opts: bool,
    /// How to print the result
    #[arg(long, value_enum, default_value_t)]
    pub(crate) output: Output,
    /// Open even if another process has the image open for writing
    #[arg(short = 'U', long)]
    pub(crate) force_share: bool,
    /// The image to copy
    #[arg(value_name = "FILENAME")]
    pub(crate) files: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct DdArgs {
    /// Format of the input; guessed from its contents without
    #[arg(short = 'f', long, value_name = "FMT")]
    pub(crate) format: Option<String>,
    /// The input is a list of options
    #[arg(long)]
    pub(crate) image_opts: bool,
    /// Format of the output; raw without
    #[arg(short = 'O', long, value_name = "OUTPUT_FMT", default_value = "raw")]
    pub(crate) output_format: String,
    /// Open even if another process has the input open for writing
    #[arg(short = 'U', long)]
    pub(crate) force_share: bool,
    /// if=INPUT of=OUTPUT bs=BLOCK_SIZE count=BLOCKS skip=BLOCKS
    #[arg(value_name = "OPERAND")]
    pub(crate) operands: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    pub(crate) image: ImageArgs,
    /// Cache mode of the image
    #[arg(short = 't', long, value_name = "CACHE")]
    pub(crate) cache: Option<String>,
    /// Number of requests
    #[arg(short = 'c', long, value_name = "COUNT", allow_hyphen_values = true)]
    pub(crate) count: Option<String>,
    /// Requests in flight
    #[arg(short = 'd', long, value_name = "DEPTH", allow_hyphen_values = true)]
    pub(crate) depth: Option<String>,
    /// Where the first request begins
    #[arg(short = 'o', long, value_name = "OFFSET", allow_hyphen_values = true)]
    pub(crate) offset: Option<String>,
    /// Bytes of a request
    #[arg(short = 's', long, value_name = "BUFFER_SIZE", allow_hyphen_values = true)]
    pub(crate) buffer_size: Option<String>,
    /// Bytes from one request to the next
    #[arg(short = 'S', long, value_name = "STEP_SIZE", allow_hyphen_values = true)]
    pub(crate) step_size: Option<String>,
    /// Accepted; has no effect
    #[arg(short = 'i', long, value_name = "AIO")]
    pub(crate) aio: Option<String>,
    /// Accepted; has no effect
    #[arg(short = 'n', long)]
    pub(crate) native: bool,
    /// Write rather than read
    #[arg(short = 'w', long)]
    pub(crate) write: bool,
    /// The byte that is written
    #[arg(long, value_name = "PATTERN", allow_hyphen_values = true)]
    pub(crate) pattern: Option<String>,
    /// Flush after so many requests
    #[arg(long, value_name = "FLUSH_INTERVAL", allow_hyphen_values = true)]
    pub(crate) flush_interval: Option<String>,
    /// Do not wait for requests in flight before a flush
    #[arg(long)]
    pub(crate) no_drain: bool,
    /// Print nothing
    #[arg(short = 'q', long)]
    pub(crate) quiet: bool,
    /// The image
    #[arg(value_name = "FILENAME")]
    pub(crate) file: String,
}

#[derive(Debug, Args)]
pub(crate) struct BitmapArgs {
    #[command(flatten)]
    pub(crate) actions: BitmapActions,
    /// Format of the image; guessed from its contents without
    #[arg(short = 'f', long = "format", value_name = "FMT")]
    pub(crate) format: Option<String>,
    /// FILENAME is a list of options such as driver=qcow2,file.filename=disk.img
    #[arg(long)]
    pub(crate) image_opts: bool,
    /// The image with the bitmap that --merge takes
    #[arg(short = 'b', long = "source-file", value_name = "SRC_FILENAME")]
    pub(crate) source: Option<String>,
    /// Format of that image
    #[arg(short = 'F', long = "source-format", value_name = "SRC_FMT")]
    pub(crate) source_format: Option<String>,
    /// Bytes for each bit of a bitmap that --add makes, with an optional suffix
    #[arg(short = 'g', long, value_name = "SIZE", allow_hyphen_values = true)]
    pub(crate) granularity: Option<String>,
    /// The image, and the name of the bitmap
    #[arg(value_names = ["FILENAME", "BITMAP"], num_args = 0..)]
    pub(crate) files: Vec<String>,
}

/// What is done to a bitmap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum BitmapAction {
    Add,
    Remove,
    Clear,
    Enable,
    Disable,
    /// Adds what the bitmap of that name says.
    Merge(String),
}

impl BitmapAction {
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            BitmapAction::Add => "add",
            BitmapAction::Remove => "remove",
            BitmapAction::Clear => "clear",
            BitmapAction::Enable => "enable",
            BitmapAction::Disable => "disable",
            BitmapAction::Merge(_) => "merge",
        }
    }
}

/// What is done to a bitmap, in the order of the command line.
#[derive(Debug)]
pub(crate) struct BitmapActions(pub(crate) Vec<BitmapAction>);

impl BitmapActions {
    const PLAIN: [(BitmapAction, &'static str); 5] = [
        (BitmapAction::Add, "Make the bitmap, which records changes from then on"),
        (BitmapAction::Remove, "Remove it"),
        (BitmapAction::Clear, "Let it say that nothing is dirty"),
        (BitmapAction::Enable, "Let it record changes"),
        (BitmapAction::Disable, "Let it record no more changes"),
    ];
}

impl Args for BitmapActions {
    fn augment_args(command: clap::Command) -> clap::Command {
        let plain = Self::PLAIN.into_iter().map(|(action, help)| {
            let arg = Arg::new(action.name()).long(action.name()).help(help);
            arg.action(ArgAction::Append).num_args(0).default_missing_value("on")
        });
        let merge = Arg::new("merge").long("merge").value_name("SOURCE").action(ArgAction::Append);
        command.args(plain).arg(merge.help("Add what another bitmap says, of this image or of SRC_FILENAME"))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for BitmapActions {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut found: Vec<(usize, BitmapAction)> = Vec::new();
        for (action, _) in Self::PLAIN {
            found.extend(matches.indices_of(action.name()).into_iter().flatten().map(|at| (at, action.clone())));
        }
        if let (Some(indices), Some(names)) = (matches.indices_of("merge"), matches.get_many::<String>("merge")) {
            found.extend(indices.zip(names.cloned().map(BitmapAction::Merge)));
        }
        found.sort_by_key(|(at, _)| *at);
        Ok(BitmapActions(found.into_iter().map(|(_, action)| action).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[derive(Debug, Args)]
pub(crate) struct CommitArgs {
    #[command(flatten)]
    pub(crate) image: ImageArgs,
    /// Cache mode of the images that are written
    #[arg(short = 't', long, value_name = "CACHE")]
    pub(crate) cache: Option<String>,
    /// The image of the chain to write to; without, the backing file
    #[arg(short = 'b', long, value_name = "BASE")]
    pub(crate) base: Option<String>,
    /// Write at most so many bytes in a second
    #[arg(short = 'r', long, value_name = "RATE")]
    pub(crate) rate: Option<String>,
    /// Leave the image as it is, rather than empty it
    #[arg(short = 'd', long = "drop")]
    pub(crate) keep: bool,
    /// Show progress
    #[arg(short = 'p', long)]
    pub(crate) progress: bool,
    /// Print nothing
    #[arg(short = 'q', long)]
    pub(crate) quiet: bool,
    /// The image
    #[arg(value_name = "FILENAME")]
    pub(crate) file: String,
}

#[derive(Debug, Args)]
pub(crate) struct RebaseArgs {
    #[command(flatten)]
    pub(crate) image: ImageArgs,
    /// Cache mode of the image
    #[arg(short = 't', long, value_name = "CACHE")]
    pub(crate) cache: Option<String>,
    /// Cache mode of the backing files
    #[arg(short = 'T', long = "backing-cache", value_name = "CACHE")]
    pub(crate) source_cache: Option<String>,
    /// The new backing file; "" for none
    #[arg(short = 'b', long, value_name = "BACKING")]
    pub(crate) backing: Option<String>,
    /// Format of the new backing file
    #[arg(short = 'F', long = "backing-format", value_name = "FMT")]
    pub(crate) backing_format: Option<String>,
    /// Change the name only: what the image reads as changes unless both backing files are alike
    #[arg(short = 'u', long = "backing-unsafe", alias = "unsafe")]
    pub(crate) unsafe_mode: bool,
    /// Store compressed what has to be stored
    #[arg(short = 'c', long)]
    pub(crate) compress: bool,
    /// Show progress
    #[arg(short = 'p', long)]
    pub(crate) progress: bool,
    /// Print nothing
    #[arg(short = 'q', long)]
    pub(crate) quiet: bool,
    /// The image
    #[arg(value_name = "FILENAME")]
    pub(crate) file: String,
}
