//! Files and block devices of this machine.
