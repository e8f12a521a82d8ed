//! Just enough of an NBD client to time qemu-nbd.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::process::command;

const IN_FLIGHT: u64 = 16;
const BLOCK: usize = 4096;

/// Ends the server.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Reads 4 KiB at every `step` bytes, around and around, with several requests in flight.
pub(crate) fn reads_per_second(image: &str, reads: u64, step: u64) -> Result<f64> {
    let socket = std::env::temp_dir().join(format!("diskette-nbd-{}", std::process::id()));
    let _ = std::fs::remove_file(&socket);
    let server = command("qemu-nbd").args(["-r", "-f", "qcow2", "-k"]).arg(&socket).arg(image).spawn()?;
    let _server = Server(server);
    let begun = Instant::now();
    let mut stream = loop {
        match UnixStream::connect(&socket) {
            Ok(stream) => break stream,
            Err(error) if begun.elapsed() > Duration::from_secs(5) => return Err(error).context("qemu-nbd"),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    let size = handshake(&mut stream)?;
    let begun = Instant::now();
    let mut reply = [0; 16 + BLOCK];
    for number in 0..reads + IN_FLIGHT {
        if number < reads {
            let at = (number * step % size).min(size - BLOCK as u64);
            let mut request = [0; 28];
            request[..4].copy_from_slice(&0x2560_9513u32.to_be_bytes());
            request[8..16].copy_from_slice(&number.to_be_bytes());
            request[16..24].copy_from_slice(&at.to_be_bytes());
            request[24..].copy_from_slice(&(BLOCK as u32).to_be_bytes());
            stream.write_all(&request)?;
        }
        if number >= IN_FLIGHT {
            stream.read_exact(&mut reply)?;
            ensure!(
                reply.starts_with(&0x6744_6698u32.to_be_bytes()) && reply[4..8] == [0; 4],
                "qemu-nbd failed a read"
            );
        }
    }
    let rate = reads as f64 / begun.elapsed().as_secs_f64();
    let _ = std::fs::remove_file(&socket);
    Ok(rate)
}

/// The fixed newstyle handshake for the export without a name. Gives its size.
fn handshake(stream: &mut UnixStream) -> Result<u64> {
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting)?;
    ensure!(greeting.starts_with(b"NBDMAGICIHAVEOPT"), "not an NBD server");
    // Fixed newstyle, no padding; then the option EXPORT_NAME with an empty name.
    stream.write_all(&3u32.to_be_bytes())?;
    stream.write_all(b"IHAVEOPT\0\0\0\x01\0\0\0\0")?;
    let mut export = [0; 10];
    stream.read_exact(&mut export)?;
    let mut size = [0; 8];
    size.copy_from_slice(&export[..8]);
    Ok(u64::from_be_bytes(size))
}
