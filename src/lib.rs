//! Virtual-disk images from one sans-IO core.
#![no_std]
