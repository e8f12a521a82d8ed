//! The metadata cache.
