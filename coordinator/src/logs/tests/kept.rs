//! Extents as bytes.

use proptest::prelude::*;

use super::*;

fn extent() -> impl Strategy<Value = Extent> {
    let place = (any::<u64>(), any::<u64>(), 1..=u32::MAX, any::<u32>());
    let numbers = (any::<u64>(), 1..=u64::MAX, any::<u64>(), 1..=u32::MAX);
    let micros = Timestamp::MIN.as_micros()..=Timestamp::MAX.as_micros();
    (place, numbers, micros.clone(), micros).prop_map(|(place, numbers, first, last)| {
        let (segment, offset, length, bytes) = place;
        let (first_seq, entries, first_arrival, arrivals) = numbers;
        Extent {
            at: Position { segment, offset: offset >> 1 },
            length,
            bytes: 1 + bytes % length,
            first_seq: first_seq >> 1,
            entries: 1 + (entries >> 1),
            first_arrival: first_arrival >> 1,
            arrivals,
            first_time: Timestamp::from_micros(first.min(last)),
            last_time: Timestamp::from_micros(first.max(last)),
        }
    })
}

proptest! {
    #[test]
    fn extents_come_back_from_their_bytes(extents in prop::collection::vec(extent(), 0..20)) {
        prop_assert_eq!(decode_extents(&encode_extents(&extents)), Ok(extents));
    }

    #[test]
    fn damaged_bytes_are_refused_or_give_extents(
        extents in prop::collection::vec(extent(), 1..4),
        place in any::<prop::sample::Index>(),
        bits in 1_u8..,
        left in any::<prop::sample::Index>(),
    ) {
        let mut bytes = encode_extents(&extents);
        let place = place.index(bytes.len());
        bytes[place] ^= bits;
        bytes.truncate(left.index(bytes.len() + 1));
        let _ = decode_extents(&bytes);
    }

    #[test]
    fn hostile_bytes_are_refused_or_give_extents(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode_extents(&[&[1], &bytes[..]].concat());
    }
}

#[test]
fn no_extents_are_no_bytes_and_the_form_does_not_change() {
    assert_eq!(encode_extents(&[]), [0_u8; 0]);
    assert_eq!(decode_extents(&[]), Ok(vec![]));
    let first = Extent {
        at: Position { segment: 3, offset: 24 },
        length: 300,
        bytes: 200,
        first_seq: 0,
        entries: 2,
        first_arrival: 5,
        arrivals: 3,
        first_time: Timestamp::from_micros(70),
        last_time: Timestamp::from_micros(71),
    };
    let second = Extent { at: Position { segment: 3, offset: 330 }, first_seq: 2, first_arrival: 9, ..first };
    let bytes = [
        &[1][..],
        &[6, 48, 0xac, 2, 0xc8, 1, 0, 2, 10, 3, 0x8c, 1, 2],
        &[0, 12, 0xac, 2, 0xc8, 1, 0, 2, 2, 3, 1, 2],
    ];
    assert_eq!(encode_extents(&[first, second]), bytes.concat());
    assert_eq!(decode_extents(&bytes.concat()), Ok(vec![first, second]));
}

#[test]
fn bytes_that_are_no_extents_are_refused() {
    assert_eq!(decode_extents(&[2, 0]), Err(ExtentsError::Newer(2)));
    for bytes in
        [&[1][..], &[0], &[0, 1], &[1; 4], &[1, 0xff, 0xff], &[[1; 1], [0xff; 1]].concat().repeat(20)]
    {
        assert_eq!(decode_extents(bytes), Err(ExtentsError::Damaged), "{bytes:?}");
    }
    let overlong = [&[1], &[0xff; 9][..], &[2]].concat();
    assert_eq!(decode_extents(&overlong), Err(ExtentsError::Damaged));
}
