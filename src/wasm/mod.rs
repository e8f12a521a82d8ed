//! The JavaScript binding.
#![allow(unsafe_code)]
