//! What is said to servers of disks, without the sockets it is said through.

pub mod nbd;
