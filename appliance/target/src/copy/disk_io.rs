//! Bytes between images and devices: which are worth to be moved.

/// Runs of zeroes shorter than this are moved as they are.
pub(super) const GRANULE: usize = 4096;

static ZEROES: [u8; GRANULE] = [0; GRANULE];

/// Ranges of a buffer that are not whole granules of zeroes, in order; none touches the next.
pub(super) fn data_runs(buffer: &[u8], granule: usize) -> Vec<std::ops::Range<usize>> {
    let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
    let mut at = 0;
    for part in buffer.chunks(granule) {
        if !is_zero(part) {
            match runs.last_mut() {
                Some(run) if run.end == at => run.end += part.len(),
                _ => runs.push(at..at + part.len()),
            }
        }
        at += part.len();
    }
    runs
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes
        .chunks(GRANULE)
        .all(|part| *part == ZEROES[..part.len()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_granules_of_zeroes_are_left_out() {
        let mut buffer = vec![0; 5 * GRANULE + 512];
        assert!(data_runs(&buffer, GRANULE).is_empty());
        buffer[GRANULE] = 1;
        buffer[3 * GRANULE - 1] = 1;
        buffer[5 * GRANULE + 511] = 1;
        let runs = data_runs(&buffer, GRANULE);
        assert_eq!(runs, [GRANULE..3 * GRANULE, 5 * GRANULE..5 * GRANULE + 512]);
        let runs = data_runs(&buffer, 4 * GRANULE);
        assert_eq!(runs, std::iter::once(0..buffer.len()).collect::<Vec<_>>());
    }
}
