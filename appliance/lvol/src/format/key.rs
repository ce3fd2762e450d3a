//! Keys of the records. Numbers are big-endian, so that keys sort as the numbers do.

use super::LayerId;

/// Key of the one record in the table `pool`.
pub const POOL_KEY: &[u8] = b"pool";

/// Key in the table `map`: a layer's pieces lie together, in order.
#[must_use]
pub fn piece_key(layer: LayerId, piece: u64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&layer.0.to_be_bytes());
    key[8..].copy_from_slice(&piece.to_be_bytes());
    key
}

/// What [`piece_key`] was made of; `None` if these bytes are no such key.
#[must_use]
pub fn parse_piece_key(key: &[u8]) -> Option<(LayerId, u64)> {
    let (layer, piece) = key.split_first_chunk::<8>()?;
    Some((parse_layer_key(layer)?, parse_number(piece)?))
}

/// Key in the table `layers`.
#[must_use]
pub fn layer_key(layer: LayerId) -> [u8; 8] {
    layer.0.to_be_bytes()
}

/// What [`layer_key`] was made of; `None` if these bytes are no such key.
#[must_use]
pub fn parse_layer_key(key: &[u8]) -> Option<LayerId> {
    parse_number(key).filter(|id| *id != 0).map(LayerId)
}

/// Key in the table `free`: chunk `n` is the clusters from `n * CHUNK_CLUSTERS` on.
#[must_use]
pub fn chunk_key(chunk: u64) -> [u8; 8] {
    chunk.to_be_bytes()
}

/// What [`chunk_key`] was made of; `None` if these bytes are no such key.
#[must_use]
pub fn parse_chunk_key(key: &[u8]) -> Option<u64> {
    parse_number(key)
}

/// Key in the table `operations`.
#[must_use]
pub fn operation_key(id: u64) -> [u8; 8] {
    id.to_be_bytes()
}

/// What [`operation_key`] was made of; `None` if these bytes are no such key.
#[must_use]
pub fn parse_operation_key(key: &[u8]) -> Option<u64> {
    parse_number(key)
}

fn parse_number(key: &[u8]) -> Option<u64> {
    key.try_into().ok().map(u64::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_sort_as_their_numbers_do() {
        let pieces = [
            (1, 0),
            (1, 255),
            (1, 256),
            (2, 0),
            (256, 1),
            (u64::MAX, u64::MAX),
        ];
        let keys = pieces.map(|(layer, piece)| piece_key(LayerId(layer), piece));
        assert!(keys.is_sorted());
        assert!(chunk_key(255) < chunk_key(256));
        assert!(layer_key(LayerId(255)) < layer_key(LayerId(256)));
        assert!(operation_key(255) < operation_key(256));
    }

    #[test]
    fn keys_are_these_bytes() {
        assert_eq!(
            piece_key(LayerId(0x0102), 0x0304),
            [0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 3, 4]
        );
        assert_eq!(layer_key(LayerId(0x0102)), [0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(chunk_key(0x0102), [0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(operation_key(0x0102), [0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(POOL_KEY, b"pool");
    }

    #[test]
    fn keys_are_parsed_back_and_other_bytes_are_not() {
        let key = piece_key(LayerId(7), u64::MAX);
        assert_eq!(parse_piece_key(&key), Some((LayerId(7), u64::MAX)));
        for length in 0..16 {
            assert_eq!(parse_piece_key(&key[..length]), None, "{length} bytes");
        }
        assert_eq!(parse_piece_key(&[1; 17]), None);
        assert_eq!(parse_piece_key(&[0; 16]), None, "layer 0 is never used");
        assert_eq!(parse_layer_key(&layer_key(LayerId(9))), Some(LayerId(9)));
        assert_eq!(parse_layer_key(&[0; 8]), None);
        assert_eq!(parse_chunk_key(&chunk_key(0)), Some(0));
        assert_eq!(parse_chunk_key(&[0; 9]), None);
        assert_eq!(parse_operation_key(&operation_key(3)), Some(3));
        assert_eq!(parse_operation_key(&[]), None);
    }
}
