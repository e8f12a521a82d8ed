//! Looking for zeroes.

/// Whether every byte is zero. Compares long stretches at once.
pub fn is_zero(bytes: &[u8]) -> bool {
    const STRIDE: usize = 64;
    let mut chunks = bytes.chunks_exact(STRIDE);
    chunks.by_ref().all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
        && chunks.remainder().iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_a_single_set_bit_anywhere() {
        let mut bytes = [0u8; 200];
        assert!(is_zero(&bytes));
        for position in 0..bytes.len() {
            bytes[position] = 0x10;
            assert!(!is_zero(&bytes), "at {position}");
            bytes[position] = 0;
        }
    }
}
